"""Does the scan go on where the first or the last vertebra was found?

A coil that fades out, an artefact or bad luck may hide half a spine: what was found is then no less right, but the user
has to be told that it is not all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spineps.anatomy import VERTEBRA_NAMES
from spineps.phases.landmarks import Body, pitches, spine_axes
from spineps.volume import Grid, Volume

#: Distances between vertebrae from the last one that was found to where the next one would end.
REACH = 1.5
#: Around where the next one would be, mm: half the side of the square that has to lie inside the image.
AROUND = 10.0
#: Least signal there, as a share of that of the bodies: below it lies air (generated and real scans: air .00 to .03).
LEAST_SIGNAL = 0.08
#: What is cut there looks like something else: the side of a body like a sacrum.
SIDEWAYS = "the spine leaves the image through its side: what is cut there may be misread, and names may be one off"


def unseen_ends(image: Volume, bodies: Sequence[Body], names: Sequence[int], sacrum: bool) -> tuple[str, ...]:
    """What is to be said about the ends of the row.

    Args:
        image: the scan, any orientation.
        bodies: from top to bottom, as :func:`~spineps.phases.landmarks.measure_bodies` gives them.
        names: vertebra ids of these bodies.
        sacrum: it lies below the last one.

    Returns:
        One sentence for each end beyond which the scan shows more than air, for a whole vertebra at least.
    """
    solid = [(body, name) for body, name in zip(bodies, names, strict=True) if body.body_mm3 > 0]
    if len(solid) < 2:
        return ()
    row, centres = [body for body, _ in solid], np.array([body.centre for body, _ in solid])
    usual, down = float(np.median(pitches(row))), spine_axes(centres)
    bright = float(np.median(_values(image, centres)))
    told = []
    # Above C2 lies the head.
    if names[0] > 2 and _goes_on(image, centres[0], -usual * down[0], bright):
        told.append(f"above {VERTEBRA_NAMES[names[0]]}")
    if not sacrum and _goes_on(image, centres[-1], usual * down[-1], bright):
        told.append(f"below {VERTEBRA_NAMES[names[-1]]}")
    return tuple(f"{where} the scan goes on, but nothing of the spine was found there" for where in told)


def leaves_sideways(grid: Grid, bodies: Sequence[Body]) -> tuple[bool, bool]:
    """Whether the row runs out of the image through its left or right side, at the top and at the bottom.

    Args:
        grid: of the scan, PIR.
        bodies: from top to bottom.
    """
    centres = np.array([body.centre for body in bodies if body.body_mm3 > 0])
    if len(centres) < 2:
        return False, False
    across, width = grid.to_index(centres)[:, 2] * grid.zoom[2], (grid.shape[2] - 1) * grid.zoom[2]

    def out(last: float, before: float) -> bool:
        # Half of the next body is missing, and the centre of the one behind it.
        one, two = 2 * last - before, 3 * last - 2 * before
        return (one < AROUND and two < 0) or (one > width - AROUND and two > width)

    return out(across[0], across[1]), out(across[-1], across[-2])


def _goes_on(image: Volume, centre: np.ndarray, step: np.ndarray, bright: float) -> bool:
    """Whether the place of the next vertebra, ``step`` (mm, RAS) from the last, is in view and not air."""
    front = np.array([0.0, AROUND, 0.0])
    corners = np.array([centre + REACH * step, centre + step + front, centre + step - front])
    index = image.grid.to_index(corners)
    if (index < -0.5).any() or (index > np.array(image.shape) - 0.5).any():
        return False
    offsets = np.stack(np.meshgrid(*[np.linspace(-AROUND, AROUND, 7)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    values = _values(image, centre + step + offsets)
    dark = float(np.percentile(image.array[::4, ::4, ::2], 1))
    return bool(np.ptp(values) > 0 and np.mean(values) - dark > LEAST_SIGNAL * (bright - dark))


def _values(image: Volume, places: np.ndarray) -> np.ndarray:
    """Grey values at RAS mm, the nearest voxel's; places outside are left out."""
    index = np.rint(image.grid.to_index(places)).astype(int)
    inside = ((index >= 0) & (index < np.array(image.shape))).all(axis=1)
    return np.asarray(image.array[tuple(index[inside].T)], dtype=np.float64)
