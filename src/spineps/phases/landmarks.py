"""What the masks alone tell about names: sacrum, dens, the canal's upper end, the size of the bodies.

Evidence is a table of scores per vertebra (rows, top to bottom) and name (26 states of :mod:`~spineps.phases.solver`),
0 for what fits and negative for what does not, in the units of the score table of the labelling heads.
:data:`TEMPERATURE` converts them: a score of -TEMPERATURE makes a name e times less probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps.anatomy import BODY_PARTS, CANAL_PARTS, DENS, SACRUM, VERTEBRA_PARTS
from spineps.phases.components import is_in
from spineps.phases.heights import body_heights
from spineps.phases.postprocess import RING
from spineps.phases.semantic import FUSED_MM2, body_on_sacrum
from spineps.phases.solver import INDEX, N_STATES
from spineps.phases.transition import disc_in_sacrum
from spineps.volume import Grid, Volume

TEMPERATURE = 0.3
#: Variants of the number of thoracic or lumbar vertebrae are seen in a few per cent of people: exp(-1 / 0.3) = 3.6 %.
RARE = 1.0
#: As good as impossible.
NEVER = 3.0

C1, C2, L5 = (INDEX[v] for v in (1, 2, 24))

# Mean distance to the next body's centre, C1 .. T12, T13, L1 .. L6, in mm: Panjabi 1991/92 raised by 5-10 % to living
# adults, discs from CT and MR series (see synth/morphometry.py); C1, T13 and L6 are guessed from their neighbours.
_CERVICAL = (18.0, 21.0, 17.0, 17.0, 17.2, 18.1, 19.2)
_THORACIC = (20.0, 20.5, 21.0, 21.7, 22.7, 24.0, 25.2, 26.1, 27.2, 28.5, 30.0, 32.1, 32.5)
_LUMBAR = (34.2, 35.8, 36.7, 37.3, 37.0, 36.0)
PITCH = np.array([*_CERVICAL, *_THORACIC, *_LUMBAR])
# Relative spread of one distance, and of stature.  Distances of one person err together, hence the large first number:
# chosen by us on 300 generated spines, where names that rest on sizes alone are then right as often as they claim.
PITCH_SPREAD, STATURE_SPREAD = 0.16, 0.10
STATURES = np.exp(STATURE_SPREAD * np.array([-1.5, -0.75, 0.0, 0.75, 1.5]))
#: Distance between neighbours over the usual one near by, natural logarithm: with nobody missing, with one and with two
#: (centre), and its spread (698 pairs of 36 generated spines: 0.11 and 0.10, here with room for bad masks).  From C2
#: with its dens it is up to 1.65 times as far to C3.
GAP_CENTRES, GAP_SPREAD, DENS_REACH = (0.0, 0.69, 1.1), 0.13, 0.39
#: Taken beforehand: one vertebra in fifty is not found, two in a row in four hundred (nats).  And the most that a
#: distance alone can say against a number.
GAP_PRIOR, GAP_LIMIT = (0.0, 3.9, 6.0), 12.0
#: Sacrum that counts as seen: a tenth of S1.
LEAST_SACRUM_MM3 = 2000.0
#: Disc inside the sacrum, as a share of the area of the one above, that speaks for a transitional vertebra (chu16
#: as it is, in axial slices and tilted: .12 to .47; 34 other lumbar scans 0).
RUDIMENT = 0.08
#: Less sacrum than this share of a body is a piece of something: the side of a last vertebra at the slab's end has been
#: called so (.5; 1.2 to 3.8 in 39 lumbar scans).
PIECE_OF_SACRUM = 0.8
#: Dens that makes a C2 (published 2.1.3).
DENS_MM3 = 250.0
#: Without a class of its own the dens is part of the body: a C2 is at least this much taller than the bodies below it
#: (2.0 to 2.8 on 22 generated people, 2.3 to 3.0 in three heads; a dens alone 1.4 to 1.8) and its upper third at most
#: this much as far across as its lower third (.67 to .82; .94 to 1.24 where there is no dens), or this much as wide
#: (.34 to .65 on 40; .81 to 2.0, mostly 1.24, on 204 others), or, below a ring without a body, nearly so: fat around
#: the dens is called body in T1w heads (.80).
C2_HEIGHT, C2_TAPER, C2_SLIM, C2_SLIM_BELOW_RING = 1.9, 0.88, 0.73, 0.9
#: Rows from the top among which C2 is looked for: above it lie C1's ring and pieces of the skull.
TOP_ROWS = 4


@dataclass(frozen=True, eq=False)
class Body:
    """One vertebra as the masks show it.

    Attributes:
        id: instance id.
        centre: RAS mm; of the body, or of all parts when no body is seen.
        height: mm along the spine (0 when no body is seen).
        body_mm3: volume of the body, dens included.
        dens_mm3: volume of the dens.
        depth_index: position along axis 1 (PIR), voxels; where the body would be when none is seen.
        taper: extent across of the upper third of the body over that of the lower third (1 when no body is seen).
        slim: the same from left to right alone, where C1's anterior arch does not count.
        cut_off: its body reaches the upper end of the image.
    """

    id: int
    centre: np.ndarray
    height: float
    body_mm3: float
    dens_mm3: float
    depth_index: float
    taper: float = 1.0
    slim: float = 1.0
    cut_off: bool = False


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one landmark says.

    Attributes:
        table: (n, 26) scores.
        note: for people.
        decisive: it fixes the names, up to rare variants.
        end: state of the last row that it points to, if it does.
    """

    table: np.ndarray
    note: str
    decisive: bool
    end: int | None = None


def measure_bodies(sem: np.ndarray, inst: np.ndarray, grid: Grid) -> list[Body]:
    """All vertebrae from top to bottom; arrays are PIR on ``grid``, instances may have any ids."""
    voxels = np.nonzero((inst > 0) & is_in(sem, VERTEBRA_PARTS))
    if voxels[0].size == 0:
        return []
    ids, row = np.unique(inst[voxels], return_inverse=True)
    code = sem[voxels]
    body = is_in(code, BODY_PARTS)
    n, volume = len(ids), grid.voxel_volume
    has_body = np.bincount(row[body], minlength=n)
    used = body | (has_body[row] == 0)
    number = np.bincount(row[used], minlength=n)
    index = np.stack([np.bincount(row[used], weights=axis[used], minlength=n) / number for axis in voxels], axis=-1)
    heights = body_heights(sem, inst * is_in(sem, VERTEBRA_PARTS))
    depth = np.array([heights[int(i)] for i in ids])
    order = np.argsort(depth, kind="stable")
    centre = grid.to_world(index)
    axes = spine_axes(centre[order])[np.argsort(order)]
    offset = grid.to_world(np.stack([a[body] for a in voxels], axis=-1)) - centre[row[body]]
    along = (offset * axes[row[body]]).sum(1)
    # A slab of uniform thickness h has standard deviation h / sqrt(12) across.
    square = np.bincount(row[body], weights=along**2, minlength=n)
    height = np.sqrt(12 * square / np.maximum(has_body, 1))
    dens = np.bincount(row[code == DENS], minlength=n)
    cut_off = np.bincount(row[body & (voxels[1] < 1)], minlength=n) > 0
    third, across = height[row[body]] / 6, (offset**2).sum(1) - along**2
    ends = [(along < -third).astype(float), (along > third).astype(float)]

    def mean(values: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.bincount(row[body], values * end, n) / np.maximum(np.bincount(row[body], end, n), 1)

    upper, lower = (mean(across, end) for end in ends)
    taper = np.sqrt((upper + 1) / (lower + 1))
    left = offset @ (grid.affine[:3, 2] / np.linalg.norm(grid.affine[:3, 2]))
    upper, lower = (mean(left**2, end) - mean(left, end) ** 2 for end in ends)
    slim = np.sqrt((upper + 1) / (lower + 1))
    return [
        Body(
            id=int(ids[k]),
            centre=centre[k],
            height=float(height[k]),
            body_mm3=has_body[k] * volume,
            dens_mm3=dens[k] * volume,
            depth_index=float(depth[k]),
            taper=float(taper[k]),
            slim=float(slim[k]),
            cut_off=bool(cut_off[k]),
        )
        for k in order
    ]


def spine_axes(centres: np.ndarray) -> np.ndarray:
    """Downward unit vector (n, 3) at each of n body centres (RAS mm, top to bottom)."""
    if len(centres) < 2:
        return np.tile([0.0, 0.0, -1.0], (len(centres), 1))
    axes = np.gradient(centres, axis=0)
    return axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-9)


def gap_costs(bodies: list[Body]) -> np.ndarray:
    """(n - 1, 3) costs of 0, 1 and 2 vertebrae missing between neighbours, judged by the other distances near by."""
    distance = pitches(bodies)
    costs = np.tile(TEMPERATURE * np.array([0.0, GAP_LIMIT, GAP_LIMIT]), (len(distance), 1))
    # Without a body (the ring of C1, or slivers of it) the centre lies elsewhere and the distance means nothing.
    solid = [b.body_mm3 > 0 for b in bodies]
    if len(bodies) > 1 and bodies[0].body_mm3 < RING * bodies[1].body_mm3:
        solid[0] = False
    top = solid.index(True) if any(solid) else 0
    for i, mm in enumerate(distance):
        near = [distance[k] for k in range(max(i - 2, 0), min(i + 3, len(distance))) if k not in (i, top - 1)]
        if len(near) < 2 or not (solid[i] and solid[i + 1]):
            continue
        far = np.log(mm / np.median(near))
        # The top body may be a C2 with its dens.
        reach = DENS_REACH if i == top else 0.0
        off = np.array([max(far - centre - reach, 0.0) + min(far - centre, 0.0) for centre in GAP_CENTRES])
        # Nearer than usual says nothing for anybody missing, and nothing against nobody missing.
        off[0] = max(off[0], 0.0)
        nats = np.minimum(off**2 / (2 * GAP_SPREAD**2), GAP_LIMIT) + GAP_PRIOR
        costs[i] = TEMPERATURE * nats
    return costs


def pitches(bodies: list[Body]) -> np.ndarray:
    """(n - 1,) mm between the centres of neighbouring bodies."""
    centres = np.array([b.centre for b in bodies])
    return np.linalg.norm(np.diff(centres, axis=0), axis=1)


def gather(semantic: Volume, bodies: list[Body]) -> list[Evidence]:
    """All landmarks in view.

    Args:
        semantic: structure ids, PIR.
        bodies: from :func:`measure_bodies`, at least one.
    """
    found = (_sacrum(semantic, bodies), _dens(bodies), _canal_top(semantic, bodies))
    return [evidence for evidence in found if evidence is not None]


def size_evidence(bodies: list[Body], gaps: Sequence[int], stature: float) -> np.ndarray:
    """(n, 26) scores of the distances between bodies, for a person of ``stature`` times the usual size."""
    table = np.zeros((len(bodies), N_STATES))
    for i, (mm, gap) in enumerate(zip(pitches(bodies), gaps, strict=True)):
        if gap == 0 and bodies[i].body_mm3 > 0 and bodies[i + 1].body_mm3 > 0:
            table[i] = -TEMPERATURE * np.log(mm / (stature * PITCH)) ** 2 / (2 * PITCH_SPREAD**2)
    return np.maximum(table, -NEVER)


def _sacrum(semantic: Volume, bodies: list[Body]) -> Evidence | None:
    last = bodies[-1]
    voxels = np.stack(np.nonzero(semantic.array == SACRUM), axis=-1)
    # Strays above the last body are no sacrum; what is left must be of some size.
    voxels = voxels[voxels[:, 1] > last.depth_index]
    if len(voxels) * semantic.grid.voxel_volume < LEAST_SACRUM_MM3:
        return None
    nearest = float(np.linalg.norm(semantic.grid.to_world(voxels) - last.centre, axis=1).min())
    usual = float(np.median(pitches(bodies)[-3:])) if len(bodies) > 1 else float(PITCH[L5])
    # Half a body and one disc lead from the centre to the sacrum; whole pitches more mean vertebrae not found.
    missing = max(round((nearest - 0.6 * usual) / usual), 0)
    if missing > 3:
        return None
    table = np.zeros((len(bodies), N_STATES))
    table[-1] = -NEVER
    end = L5 - missing
    table[-1, [end, end + 1]] = 0.0  # one more lumbar vertebra already pays for being rare in the solver
    if body_on_sacrum(semantic) > FUSED_MM2:
        table[-1, end - 1] = 0.0
        note = "the sacrum grows into a body: it may begin a vertebra too high, and all names may be one off"
        return Evidence(table, note, False)
    if len(voxels) * semantic.grid.voxel_volume < PIECE_OF_SACRUM * np.median([b.body_mm3 for b in bodies[-3:]]):
        table[-1, end - 1] = 0.0
        note = "only a piece of the sacrum is in view: it may be one of a vertebra, and all names may be one off"
        return Evidence(table, note, False)
    if disc_in_sacrum(semantic) > RUDIMENT:
        table[-1, end - 1] = 0.0
        note = "a disc lies inside the sacrum: it may begin a vertebra too high, and all names may be one off"
        return Evidence(table, note, False)
    table[-1, end - 1] = -RARE
    gap = f" ({missing} vertebra(e) between them were not found)" if missing else ""
    return Evidence(table, f"the sacrum lies below the last vertebra{gap}", True, end)


def _dens(bodies: list[Body]) -> Evidence | None:
    row = int(np.argmax([b.dens_mm3 for b in bodies]))
    if bodies[row].dens_mm3 <= DENS_MM3:
        row = _tapered_top(bodies)
    if row < 0:
        return None
    table = np.zeros((len(bodies), N_STATES))
    table[row] = -10 * NEVER
    table[row, C2] = 0.0
    return Evidence(table, "a dens is in view: its vertebra is C2", True)


def without_skull(bodies: list[Body]) -> list[Body]:
    """Pieces without a body above a C2: only the one next to it can be C1, the others are of the skull."""
    return bodies[max(_tapered_top(bodies) - 1, 0) :]


def dens_alone(bodies: list[Body]) -> bool:
    """Whether the first body is as slim above as only a dens is, and not as tall as a C2: it may be cut in two."""
    top, below = _top_of_neck(bodies)
    return bool(below and top.slim <= C2_SLIM and top.height < C2_HEIGHT * np.median(below))


def _tapered_top(bodies: list[Body]) -> int:
    """Row of the first body if it looks like a C2 with its dens, else -1."""
    top, below = _top_of_neck(bodies)
    row = bodies.index(top)
    slim = top.taper <= C2_TAPER or top.slim <= (C2_SLIM_BELOW_RING if row else C2_SLIM)
    return row if below and slim and top.height >= C2_HEIGHT * np.median(below) else -1


def _top_of_neck(bodies: list[Body]) -> tuple[Body, list[float]]:
    """The first body, and heights (mm) of the two or three below it; none where it cannot be compared with them."""
    row = next((i for i, b in enumerate(bodies[:TOP_ROWS]) if b.body_mm3 > DENS_MM3), 0)
    below = [b.height for b in bodies[row + 1 : row + 4] if b.body_mm3 > 0]
    # What the border cuts may be two bodies that hang together.
    usable = bodies[row].body_mm3 > DENS_MM3 and not bodies[row].cut_off and len(below) > 1
    return bodies[row], below if usable else []


def _canal_top(semantic: Volume, bodies: list[Body]) -> Evidence | None:
    """A canal that ends inside the image ends at the foramen magnum, one short step above C2."""
    top = np.flatnonzero(is_in(semantic.array, CANAL_PARTS).any(axis=(0, 2)))
    if top.size == 0:
        return None
    zoom = semantic.zoom[1]
    inside, above = top[0] * zoom, (bodies[0].depth_index - top[0]) * zoom
    distance = pitches(bodies)[:3]
    # A canal that fades out lower down is told apart by the size of the bodies: cervical ones are close to each other.
    if inside < 10 or not 20 <= above <= 60 or len(distance) == 0 or np.median(distance) > 19.5:
        return None
    table = np.zeros((len(bodies), N_STATES))
    table[0] = -2 * RARE
    table[0, [C1, C2, C2 + 1]] = -RARE, 0.0, -RARE
    return Evidence(table, "the canal ends inside the image: the first vertebra is next to the skull", True)
