"""Scans whose slices lean forward or backward, and the grid on which the patient lies straight.

Axial slices along a lumbar disc lean by up to 35 degrees, a CT gantry by up to 25.  On the scan's own grid the spine
then leans, further than any network was trained for.  The patient lies straight on the table: the affine says how to
turn back.
"""

from __future__ import annotations

import numpy as np

from spineps.volume import Grid, Volume

#: From this lean on, degrees, the scan is turned (training turns patches by 20, and spines lean by themselves).
LEAN = 12.0
#: Finest voxel of the upright grid in the sagittal plane, mm.
FINEST = 0.75


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
