"""Scans whose slices lean forward or backward, the grid on which the patient lies straight, and affines that lie.

Axial slices along a lumbar disc lean by up to 35 degrees, a CT gantry by up to 25.  On the scan's own grid the spine
then leans, further than any network was trained for.  The patient lies straight on the table: the affine says how to
turn back.
"""

from __future__ import annotations

import numpy as np

from spineps.anatomy import BODY_PARTS, SACRUM, VERTEBRA_PARTS
from spineps.phases.components import is_in
from spineps.phases.semantic import STRAY_SACRUM
from spineps.volume import Grid, Volume

#: From this lean on, degrees, the scan is turned (training turns patches by 20, and spines lean by themselves).
LEAN = 12.0
#: Finest voxel of the upright grid in the sagittal plane, mm.
FINEST = 0.75
#: Least volume of arches and processes as a share of the bodies' (.28 to 1 in scans the right way up; .01 to .26 in
#: three that were turned front to back).
LEAST_ARCH = 0.2
#: A slab as narrow as this (mm) shows the arches only where they meet (.17 in the 17 mm of SPIDER 018).
NARROW = 25.0
#: Bodies grow towards the feet: over so many mm the lower third has at least this share of the upper third's sections.
LONG, LEAST_GROWTH = 200.0, 0.7
TURNED = "the image may be upside down or front to back: check the orientation in its header"


def upright_grid(grid: Grid) -> Grid | None:
    """A grid over the same field of view whose second axis (PIR) points to the feet as far as its slices allow.

    Only in the sagittal plane: sideways, slices follow the patient more often than the table.

    Returns:
        PIR, orthogonal in that plane; None for a scan that leans (or is sheared) by less than :data:`LEAN` degrees.
    """
    own = grid.reoriented("PIR")
    size = np.array(own.zoom)
    back, down, right = (own.affine[:3, k] / size[k] for k in range(3))
    normal = np.cross(back, down)
    normal /= np.linalg.norm(normal)
    feet = np.array([0.0, 0.0, -1.0])
    straight = feet - (feet @ normal) * normal
    straight /= np.linalg.norm(straight)
    behind = np.cross(straight, normal)
    behind *= np.sign(behind @ back)
    lean = np.rad2deg(np.arccos(np.clip([straight @ down, behind @ back], -1, 1))).max()
    if lean < LEAN:
        return None
    zoom = np.array([max(min(size[0], size[1]), FINEST)] * 2 + [size[2]])
    axes = np.column_stack([behind, straight, right])
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in own.shape], indexing="ij")).reshape(3, -1).T
    places = np.linalg.solve(axes, own.to_world(corners).T).T
    low, high = places.min(axis=0), places.max(axis=0)
    shape = np.maximum(np.ceil((high - low) / zoom - 1e-6), 1).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * zoom
    affine[:3, 3] = axes @ (low + zoom / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def turned_upright(volume: Volume, grid: Grid) -> Volume:
    """The scan on its upright grid, linear, darkest outside of its field of view; float32."""
    image = Volume(np.asarray(volume.array, np.float32), volume.affine)
    return image.on(grid, order=1, fill=float(np.nanmin(image.array)))


def looks_turned(mask: Volume) -> bool:
    """Whether a semantic mask looks like that of an image whose affine has head and feet, or front and back, mixed up.

    A sacrum above the bodies, hardly any arch behind them, or bodies that shrink towards the feet.  A hint for a scan
    that makes no sense otherwise.  A narrow field of view may lack arches: above a sacrum that is no sign.
    """
    own = mask.reoriented("PIR")
    body = is_in(own.array, BODY_PARTS)
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    if not rows.size:
        return False
    sections = body.sum(axis=(0, 2))[rows]
    sacrum = np.nonzero(own.array == SACRUM)[1]
    on_sacrum = sacrum.size >= STRAY_SACRUM * sections.sum()
    if on_sacrum and sacrum.mean() < np.average(rows, weights=sections):
        return True
    narrow = own.shape[2] * own.zoom[2] < NARROW
    arch = np.count_nonzero(is_in(own.array, [part for part in VERTEBRA_PARTS if part not in BODY_PARTS]))
    if arch < LEAST_ARCH * sections.sum() and not (on_sacrum and narrow):
        return True
    third = len(rows) // 3
    long = (rows[-1] - rows[0]) * own.zoom[1] > LONG
    return bool(long and np.median(sections[-third:]) < LEAST_GROWTH * np.median(sections[:third]))
