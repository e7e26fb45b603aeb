"""Points of interest: centres of every part of every vertebra, its disc, its endplates and the canal beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import (
    BY_ID,
    CANAL,
    CANAL_PARTS,
    CORD,
    CORPUS,
    CORPUS_INNER,
    DENS,
    DISC,
    DISC_OFFSET,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    POSTERIOR_PARTS,
    SACRUM,
    VERTEBRA_NAMES,
    VERTEBRAE,
    instance_name,
)
from spineps.phases.components import is_in
from spineps.volume import Grid, Volume, bounding_box

if TYPE_CHECKING:
    from spineps.phases.labeling import Naming

#: From this volume on a part is large enough for a centre to be trusted; the smallest healthy process of the annotated
#: lumbar scans measures about twice as much.
TRUSTED_MM3 = 100.0
#: A plate thinner than this (mm) over the area of its body was seen in a patch only: its middle would lie askew.
PATCH_MM = 0.2
#: Confidence of a plate that was inferred from its body, and how far inside the image its surface must lie (mm).
INFERRED, BORDER_MM = 0.5, 3.0
_CODES = 256  # semantic codes fit below this, so that instance * _CODES + code is unique
_NAMES = {
    **{part: BY_ID[part].name for part in POSTERIOR_PARTS},
    CORPUS_INNER: "vertebral body",
    DENS: "dens",
    ENDPLATE_SUPERIOR: "superior endplate",
    ENDPLATE_INFERIOR: "inferior endplate",
}


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        vertebra: id, as in the ``seg-vert`` mask (1..25, 28, 26 for the sacrum).
        subregion: TPTBox ``Location``: 41..48 arch and processes, 50 body, 51 dens, 52 / 53 upper / lower endplate of
            this vertebra (confidence at most 0.5 where it was inferred from the body's surface), 60 cord and 61 canal
            at its height, 100 the disc below it.
        world: RAS mm.
        name: for people.
        confidence: 0..1, that the part is there (full from 100 mm3 on) and that the vertebra has the right name.
    """

    vertebra: int
    subregion: int
    world: tuple[float, float, float]
    name: str
    confidence: float


def compute_points(semantic: Volume, instance: Volume, naming: Naming | None = None) -> list[Point]:
    """All points of a finished pair of masks, ordered by vertebra (top to bottom), then subregion.

    Centres are means of voxel indices sent through the full affine, so they are right on oblique and sheared grids.

    Args:
        semantic: structure ids (41..49, 52, 53, 60, 61, 100 ...).
        instance: vertebra ids, 100 + disc, 200 + endplates, on the same grid.
        naming: where to take P(name) from; None counts every name as sure.
    """
    box = bounding_box((instance.array > 0) | is_in(semantic.array, CANAL_PARTS))
    if box is None:
        return []
    grid = instance.grid.cropped(box)
    found = _centres(semantic.array[box], instance.array[box], grid)
    chain = [v for v in VERTEBRAE if (v, CORPUS_INNER) in found]
    if chain:
        bodies = _body_axes(semantic.array[box], instance.array[box], grid, chain)
        found |= _canal_centres(semantic.array[box], grid, chain, bodies)
        found |= _inferred_plates(found, instance.grid, chain, bodies)
    sure = naming.confidence if naming is not None else {}
    order = {v: k for k, v in enumerate((*VERTEBRAE, SACRUM))}
    points = []
    for (vertebra, part), (world, size) in sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        trust = min(size * grid.voxel_volume / TRUSTED_MM3, 1.0) * sure.get(vertebra, 1.0)
        x, y, z = (float(w) for w in world)
        points.append(Point(vertebra, part, (x, y, z), _name(vertebra, part), round(trust, 4)))
    return points


Found = dict[tuple[int, int], tuple[np.ndarray, int]]
#: Downward unit vectors (n, 3), heights in mm (n,) and centres (n, 3) of bodies, RAS.
Bodies = tuple[np.ndarray, np.ndarray, np.ndarray]


def _centres(sem: np.ndarray, inst: np.ndarray, grid: Grid) -> Found:
    """(vertebra, subregion) -> RAS mm and voxels, for all that belongs to an instance; one pass over the voxels."""
    voxels = np.nonzero(inst)
    keys = inst[voxels].astype(np.int64) * _CODES + sem[voxels]
    number = np.bincount(keys)
    sums = np.stack([np.bincount(keys, weights=axis) for axis in voxels], axis=-1)
    present = np.flatnonzero(number)
    here = {int(key) // _CODES for key in present}
    parts: dict[tuple[int, int], list[int]] = {}
    for key in present.tolist():
        for where in _belongs(key // _CODES, key % _CODES, here):
            parts.setdefault(where, []).append(key)
    found: Found = {}
    for where, together in parts.items():
        size = int(number[together].sum())
        found[where] = grid.to_world(sums[together].sum(axis=0) / size), size
    return found


def _belongs(instance: int, code: int, present: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The point to which voxels of this instance and this structure contribute."""
    if instance == SACRUM:
        yield SACRUM, CORPUS_INNER
    elif instance in VERTEBRAE:
        if code in (CORPUS, CORPUS_INNER):
            yield instance, CORPUS_INNER
        elif code in POSTERIOR_PARTS or code == DENS:
            yield instance, code
    elif instance - DISC_OFFSET in (*VERTEBRAE, SACRUM):
        yield instance - DISC_OFFSET, DISC
    elif (vertebra := instance - ENDPLATE_OFFSET) in (*VERTEBRAE, SACRUM):
        # 200 + v holds the plates on both sides of the disc below v; the lower of them is the next bone's.
        if code == ENDPLATE_INFERIOR:
            yield vertebra, code
        elif code == ENDPLATE_SUPERIOR:
            below = next_present(vertebra, present)
            if below:
                yield below, code


def next_present(vertebra: int, present: Iterable[int]) -> int:
    """The first vertebra (or the sacrum) below ``vertebra`` that is in ``present``; the sacrum for itself; else 0.

    >>> next_present(20, {20, 22, 26}), next_present(24, {24}), next_present(26, {26}), next_present(19, {28, 20})
    (22, 0, 26, 28)
    """
    chain = (*VERTEBRAE, SACRUM)
    start = min(chain.index(vertebra) + 1, len(chain) - 1)
    here = set(present)
    return next((v for v in chain[start:] if v in here), 0)


def _inferred_plates(found: Found, grid: Grid, chain: list[int], bodies: Bodies) -> Found:
    """Middle of the body's upper and lower surface, where no endplate or only a patch of one was seen.

    Not for a surface at or beyond the border of the image: there the body is cut and its plate not in view.
    """
    axes, heights, centres = bodies
    inferred: Found = {}
    for k, vertebra in enumerate(chain):
        area = found[vertebra, CORPUS_INNER][1] * grid.voxel_volume / heights[k]
        for part, side in ((ENDPLATE_SUPERIOR, -1), (ENDPLATE_INFERIOR, 1)):
            seen = found[vertebra, part][1] * grid.voxel_volume if (vertebra, part) in found else 0.0
            beyond = grid.to_index(centres[k] + side * axes[k] * (heights[k] / 2 + BORDER_MM))
            in_view = ((beyond >= 0) & (beyond <= np.array(grid.shape) - 1)).all()
            if seen < PATCH_MM * area and in_view:
                world = centres[k] + side * axes[k] * heights[k] / 2
                inferred[vertebra, part] = world, round(INFERRED * TRUSTED_MM3 / grid.voxel_volume)
    return inferred


def _canal_centres(sem: np.ndarray, grid: Grid, chain: list[int], bodies: Bodies) -> Found:
    """Cord and canal (cord included) in the slab of every vertebra: beside its body, between its endplate planes."""
    from scipy.spatial import cKDTree

    voxels = np.nonzero(is_in(sem, CANAL_PARTS))
    if voxels[0].size == 0:
        return {}
    axes, heights, centres = bodies
    world = grid.to_world(np.stack(voxels, axis=-1))
    # The nearest body decides first, so that a slab of a bent spine cannot reach a far part of the canal.
    _, owner = cKDTree(centres).query(world)
    beside = np.abs(((world - centres[owner]) * axes[owner]).sum(axis=1)) <= heights[owner] / 2
    cord = sem[voxels] == CORD
    result: Found = {}
    for part, chosen in ((CORD, beside & cord), (CANAL, beside)):
        number = np.bincount(owner[chosen], minlength=len(chain))
        sums = [np.bincount(owner[chosen], weights=world[chosen, a], minlength=len(chain)) for a in range(3)]
        for k in np.flatnonzero(number).tolist():
            result[chain[k], part] = np.array([total[k] for total in sums]) / number[k], int(number[k])
    return result


def _body_axes(sem: np.ndarray, inst: np.ndarray, grid: Grid, chain: list[int]) -> Bodies:
    """Axis, height and centre of every body in ``chain``."""
    voxels = np.nonzero(is_in(sem, (CORPUS, CORPUS_INNER)) & is_in(inst, chain))
    place = np.zeros(int(max(chain)) + 1, int)
    place[chain] = np.arange(len(chain))
    owner = place[inst[voxels]]
    world = grid.to_world(np.stack(voxels, axis=-1))
    number = np.bincount(owner, minlength=len(chain))
    sums = [np.bincount(owner, weights=world[:, a], minlength=len(chain)) for a in range(3)]
    centres = np.stack(sums, axis=-1) / number[:, None]
    axes = np.gradient(centres, axis=0) if len(chain) > 1 else np.array([[0.0, 0.0, -1.0]])
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    along = ((world - centres[owner]) * axes[owner]).sum(axis=1)
    # A body of uniform thickness h has standard deviation h / sqrt(12) along its axis.
    heights = np.sqrt(12 * np.bincount(owner, weights=along**2, minlength=len(chain)) / number)
    return axes, np.maximum(heights, min(grid.zoom)), centres


def _name(vertebra: int, part: int) -> str:
    if part == DISC:
        return instance_name(DISC_OFFSET + vertebra)
    if vertebra == SACRUM and part == CORPUS_INNER:
        return "sacrum"
    if part in (CORD, CANAL):
        return f"{BY_ID[part].name} at {VERTEBRA_NAMES[vertebra]}"
    return f"{VERTEBRA_NAMES[vertebra]} {_NAMES[part]}"
