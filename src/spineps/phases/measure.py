"""Measurements of existing masks: arrays with an affine in, rows of numbers in millimetres and degrees out.

Voxels are sorted once by structure; everything else works on one structure's voxels, in that structure's own frame, so
the orientation of the arrays and oblique grids do not matter.  What reaches the border of the field of view is flagged,
and measures that the missing part would change are left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spineps.anatomy import DISC_OFFSET, VERTEBRA_PARTS
from spineps.phases import alignment
from spineps.phases.column import Column
from spineps.phases.measures import Measured, Row, genant_grade, volume_column
from spineps.phases.regions import Regions
from spineps.phases.solids import SQRT2, Shape, spread, unit
from spineps.volume import Grid, Volume

#: mm3 of a disc, its rearmost, that do not count for its bulge.
REARMOST = 20.0


def measure(semantic: Volume, instance: Volume, named: bool = True) -> tuple[Row, ...]:
    """Measure every vertebra and disc, and the whole spine.

    Args:
        semantic: structures (codes of :mod:`spineps.anatomy`); endplates may be missing.
        instance: vertebrae v, discs 100 + v, endplates 200 + v, same grid.
        named: False when vertebrae are only numbered: angles between certain vertebrae are then left out.

    Returns:
        Rows from cranial to caudal, the whole spine last; none when there is no vertebra.

    Raises:
        ValueError: the masks do not lie on one grid.
    """
    if not semantic.grid.same_as(instance.grid):
        raise ValueError("the two masks do not lie on one grid")
    column = Column(Regions(semantic, instance), named)
    if not column.present:
        return ()
    rows = []
    for vertebra in column.present:
        rows.append(_vertebra_row(column, vertebra))
        if DISC_OFFSET + vertebra in column.centres:
            rows.append(_disc_row(column, vertebra))
    plane = column.sacrum.plane if column.sacrum else None
    whole = alignment.spine_row(column.shapes, plane, column.front, column.grid, named)
    return (*_compared(rows, column), whole)


def _vertebra_row(column: Column, v: int) -> Row:
    """One vertebra, or the sacrum."""
    values: dict[str, Measured] = {}
    regions, shape, sides = column.regions, column.shapes.get(v), column.sides.get(v)
    whole = regions.sides(v)
    if v in column.centres and not sides:
        values |= _place(column, v)
    if not whole:
        values["volume"] = _volume(column, v)
    for part in regions.parts(v):
        if part in VERTEBRA_PARTS and not regions.sides(v, (part,)):
            values[volume_column(part)] = _volume(column, v, (part,))
    if shape is not None:
        values |= _sizes(column.grid, shape, bool(sides), heights=column.has_heights(v))
        values |= column.canal.section(shape.frame, shape.depth) if column.canal else {}
    return Row("vertebra", v, _letters(whole), values)


def _disc_row(column: Column, v: int) -> Row:
    """The disc below a vertebra, and how it stands upon the next."""
    label = DISC_OFFSET + v
    values: dict[str, Measured] = {}
    sides, shape = column.sides[label], column.discs.get(v)
    if not sides:
        values |= _place(column, label)
        values["volume"] = _volume(column, label)
    if shape is not None:
        values |= _sizes(column.grid, shape, bool(sides), heights=True)
        heights = [values[f"height_{where}"] for where in ("anterior", "middle", "posterior")]
        mean = Measured(sum(h.value for h in heights) / 3, heights[0].uncertainty)
        values["disc_height_index"] = _ratio(mean, values["depth"])
        values |= column.canal.section(shape.frame, shape.depth) if column.canal else {}
    return Row("disc", label, _letters(sides), values | _level(column, v, shape))


def _level(column: Column, v: int, disc: Shape | None) -> dict[str, Measured]:
    """Slip of a vertebra on the one below it, and bulge of the disc between."""
    below = column.neighbour(v)
    if below is None:
        return {}
    above, lower = column.shapes[v], column.shapes.get(below)
    if lower is not None:
        corner, normal, front, doubt = lower.corners[0], lower.upper.normal, lower.frame.front, 0.0
    else:
        assert column.sacrum is not None
        corner, normal, front, doubt = (
            column.sacrum.corner,
            column.sacrum.plane.normal,
            above.frame.front,
            column.sacrum.doubt,
        )
    normal = unit(unit(normal) + above.lower.normal)  # the disc's own plane, or a wedged disc would look slipped
    direction = unit(front - normal * (front @ normal))
    sigma = spread(column.grid, direction)
    slip = Measured(float((above.corners[1] - corner) @ direction), float(np.hypot(SQRT2 * sigma, doubt)))
    values = {"listhesis": slip}
    if disc is None:
        return values
    line = above.corners[1] - corner
    normal = unit(np.cross(disc.frame.right, line))
    normal = normal * -np.sign(normal @ disc.frame.front)
    inside = column.grid.to_world(column.regions.of(DISC_OFFSET + v))
    middle = np.abs((inside - disc.frame.centre) @ disc.frame.right) < disc.width / 4
    behind = np.sort((inside[middle] - corner) @ normal)
    last = max(round(REARMOST / column.grid.voxel_volume), 1)
    if len(behind) > last:
        # From voxel centre to voxel face: sqrt(3) standard deviations of an even spread.
        reach = float(behind[-last]) + np.sqrt(3) * spread(column.grid, normal)
        values["bulge"] = Measured(reach, float(np.hypot(np.sqrt(1.5) * sigma, doubt / 2)))
    return values


def _place(column: Column, label: int) -> dict[str, Measured]:
    shape = column.shapes.get(label)
    point = column.centres[label] if shape is None else shape.frame.centre
    low, high = column.regions.box(label)
    # Both ends of each row of voxels are uncertain, independently of each other from row to row at best.
    sigma = np.sqrt(column.grid.affine[:3, :3] ** 2 @ (1 / (24 * (high - low + 1))))
    return {key: Measured(float(point[k]), float(sigma[k])) for k, key in enumerate("xyz")}


def _volume(column: Column, label: int, parts: tuple[int, ...] | None = None) -> Measured:
    volume = len(column.regions.of(label, parts)) * column.grid.voxel_volume
    low, high = column.regions.box(label, parts)
    return Measured(volume, float(volume * np.sqrt((1 / (6.0 * (high - low + 1) ** 2)).sum())))


def _letters(sides: list[np.ndarray]) -> str:
    found = {("LR", "PA", "IS")[k][int(n[k] > 0)] for n in sides for k in [int(np.abs(n).argmax())]}
    return "".join(letter for letter in "RLAPSI" if letter in found)


def _sizes(grid: Grid, shape: Shape, lateral_cut: bool, heights: bool) -> dict[str, Measured]:
    up, front, right = (SQRT2 * spread(grid, axis) for axis in (shape.frame.up, shape.frame.front, shape.frame.right))
    values = {"depth": Measured(shape.depth, front)}
    if not lateral_cut:
        values["width"] = Measured(shape.width, right)
    if heights:
        for where, height in zip(("anterior", "middle", "posterior"), shape.heights, strict=True):
            values[f"height_{where}"] = Measured(height, up)
    return values


def _ratio(above: Measured, below: Measured) -> Measured:
    value = above.value / below.value
    return Measured(value, float(np.hypot(above.uncertainty, value * below.uncertainty)) / abs(below.value))


def _compared(rows: list[Row], column: Column) -> list[Row]:
    """Rows with the ratios of heights, some of which need the neighbours."""
    posterior = {row.label: row.values["height_posterior"] for row in rows if "height_posterior" in row.values}
    below = {v: column.neighbour(v) for v in column.vertebrae}
    above = {lower: v for v, lower in below.items()}
    done = []
    for row in rows:
        own = posterior.get(row.label)
        if row.kind != "vertebra" or own is None or own.value <= 0:
            done.append(row)
            continue
        values = dict(row.values)
        ratios = [_ratio(values["height_anterior"], own), _ratio(values["height_middle"], own)]
        values["wedge_ratio"], values["biconcavity_ratio"] = ratios
        beside = [posterior[v] for v in (above.get(row.label), below.get(row.label)) if v in posterior]
        if len(beside) == 2 and beside[0].value + beside[1].value > 0:
            sigma = float(np.hypot(beside[0].uncertainty, beside[1].uncertainty)) / 2
            ratios.append(_ratio(own, Measured((beside[0].value + beside[1].value) / 2, sigma)))
            values["crush_ratio"] = ratios[-1]
        lowest = min(ratios, key=lambda ratio: ratio.value)
        loss = Measured(max(100 * (1 - lowest.value), 0.0), 100 * lowest.uncertainty)
        grades = [genant_grade(loss.value + sign * loss.uncertainty) for sign in (-1, 0, 1)]
        values["height_loss"] = loss
        values["genant_grade"] = Measured(grades[1], max(grades[1] - grades[0], grades[2] - grades[1]))
        done.append(replace(row, values=values))
    return done
