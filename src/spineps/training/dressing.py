"""Bones of a real person get what a label volume lacks around them: plates, discs, canal, dural sac, cord and roots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.anatomy import DISC_OFFSET, SACRUM
from spineps.synth import morphometry
from spineps.synth.canvas import smooth_noise
from spineps.synth.tissues import Tissue

#: Holes of rings of bone that may be the canal, mm^2, and how far (mm) rows count that have none themselves.
HOLE_MM2, HOLE_REACH = (70.0, 900.0), 18.0
#: Conus, end of the dural sac (level coordinates, 20 = L1, 26 = S2), and sacral rows per level, mm.
CONUS, SAC_END, SACRAL_MM = 20.3, 26.3, 20.0
#: Bone behind the sacral canal, mm.
SACRAL_ROOF = 5.0


@dataclass(frozen=True, eq=False)
class Track:
    """The canal, one value per row (axis I), in voxels; ``known`` where rings of bone are near."""

    p: np.ndarray
    r: np.ndarray
    depth: np.ndarray
    width: np.ndarray
    known: np.ndarray


def canal_track(codes: np.ndarray, zoom: tuple[float, float, float]) -> Track:
    """The canal from the holes that vertebrae, discs and sacrum enclose, a few rows joined where one leaves gaps."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter1d, label

    column = column_mask(codes)
    occupied = np.flatnonzero(column.any((0, 1)))
    middle = gaussian_filter1d(row_means(column, 2), 8)
    n, area = codes.shape[1], zoom[0] * zoom[2]
    found = np.zeros((n, 5))
    for row in np.flatnonzero(column.any((0, 2))):
        for reach in range(5):
            near = column[:, max(row - reach, 0) : row + reach + 1, occupied[0] : occupied[-1] + 1].any(1)
            holes, count = label(binary_opening(binary_fill_holes(near) & ~near))
            best = (0.0, 0.0, 0.0, 0.0, 0.0)
            for k in range(1, count + 1):
                p, r = np.nonzero(holes == k)
                r = r + occupied[0]
                if HOLE_MM2[0] <= len(p) * area <= HOLE_MM2[1] and abs(r.mean() - middle[row]) * zoom[2] < 12:
                    # Through the middle: recesses and the gap in front of the dens are no part of the sac's room.
                    depth = (np.abs(r - r.mean()) < 2.5).sum() / len(np.unique(r[np.abs(r - r.mean()) < 2.5]))
                    width = (np.abs(p - p.mean()) < 2.5).sum() / len(np.unique(p[np.abs(p - p.mean()) < 2.5]))
                    best = max(best, (len(p) / (1.0 + reach) ** 2, p.mean(), r.mean(), depth, width))
            if best[0] > 0:
                found[row] = (1 / (1 + reach), *best[1:])
                break
    _sacral(found, codes == SACRUM, middle, zoom)
    weight = found[:, :1]
    if not weight.any():
        zero = np.zeros(n)
        return Track(zero, middle, zero, zero, zero > 1)
    rows = np.arange(n)
    have = np.flatnonzero(weight[:, 0])
    filled = np.stack([np.interp(rows, have, found[have, k]) for k in range(1, 5)], 1)
    # A joined row sees the hole too small: it counts little.
    trust = np.maximum(weight, 0.02)
    sigma = 6.0 / zoom[1]
    smooth = gaussian_filter1d(filled * trust, sigma, axis=0, mode="nearest") / gaussian_filter1d(
        trust, sigma, axis=0, mode="nearest"
    )
    distance = np.abs(rows[:, None] - have[None]).min(1) * zoom[1]
    p_line, r_line, depths, widths = smooth.T
    return Track(p_line, r_line, depths, widths, distance <= HOLE_REACH)


def _sacral(found: np.ndarray, sacrum: np.ndarray, middle: np.ndarray, zoom: tuple[float, float, float]) -> None:
    """The canal of a solid sacrum: at its textbook depth under the back."""
    from scipy.ndimage import gaussian_filter1d

    near = np.abs(np.arange(sacrum.shape[2]) - middle[:, None])[None] * zoom[2] < 4
    rows = np.flatnonzero((sacrum & near).any((0, 2)))
    # The first rows are the promontory and its facets; there the canal still lies behind.
    rows = rows[round(9 / zoom[1]) : round(75 / zoom[1])]
    if rows.size < 3:
        return
    back = np.array([np.flatnonzero((sacrum & near)[:, row].any(1))[-1] for row in rows]) * zoom[0]
    back = gaussian_filter1d(back, 5 / zoom[1], mode="nearest")
    lean = np.sqrt(1 + np.gradient(back, zoom[1]) ** 2)
    sizes = [morphometry.sacral_sizes(25 + (row - rows[0]) * zoom[1] / SACRAL_MM) for row in rows]
    depth = np.array([0.85 * s["canal_depth"] for s in sizes]) * lean
    found[rows, 0], found[rows, 2], found[rows, 3] = 1, middle[rows], depth / zoom[0]
    found[rows, 1] = (back - SACRAL_ROOF * lean - depth / 2) / zoom[0]
    found[rows, 4] = np.array([0.85 * s["canal_width"] for s in sizes]) / zoom[2]


def column_mask(codes: np.ndarray) -> np.ndarray:
    """Vertebrae, sacrum and discs."""
    return ((codes >= 1) & (codes <= 26)) | (codes > DISC_OFFSET)


def row_means(mask: np.ndarray, axis: int) -> np.ndarray:
    """Mean index along ``axis`` (0 or 2) of every row's voxels, interpolated over empty rows."""
    counts = mask.sum(2 if axis == 0 else 0, dtype=np.float64)
    counts = counts if axis == 0 else counts.T
    total = counts.sum(0)
    have = np.flatnonzero(total)
    means = (counts * np.arange(len(counts))[:, None]).sum(0)[have] / total[have]
    return np.interp(np.arange(mask.shape[1]), have, means)


@dataclass(eq=False)
class Dressing:
    """What is drawn into: maps (P, I, R), and every voxel's place behind (``a``) and right (``b``) of the canal, mm."""

    codes: np.ndarray
    zoom: tuple[float, float, float]
    rng: np.random.Generator

    def __post_init__(self) -> None:
        shape, self.track = self.codes.shape, canal_track(self.codes, self.zoom)
        self.tissue, self.instance = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.a = (np.arange(shape[0])[:, None] - self.track.p).astype(np.float32)[:, :, None] * np.float32(self.zoom[0])
        self.b = (np.arange(shape[2]) - self.track.r[:, None]).astype(np.float32)[None] * np.float32(self.zoom[2])
        self.depth, self.width = self.track.depth * self.zoom[0], self.track.width * self.zoom[2]
        self.key = self._level()

    def noise(self, mm: float | tuple[float, float, float]) -> np.ndarray:
        """Smooth random field of the maps' shape."""
        lengths = (mm, mm, mm) if isinstance(mm, (int, float)) else mm
        cells = tuple(max(m / z, 1.0) for m, z in zip(lengths, self.zoom, strict=True))
        return smooth_noise(self.codes.shape, cells, self.rng)

    def in_front(self) -> np.ndarray:
        """Voxels in front of the canal."""
        return np.broadcast_to(self.a < -0.5 * self.depth[None, :, None], self.codes.shape)

    def _level(self) -> np.ndarray:
        """Level coordinate of every row, from the middles of the bodies."""
        near = self.in_front() & (np.abs(self.b) < 12)
        keys, rows = [], []
        for v in range(1, 26):
            body = np.flatnonzero(((self.codes == v) & near).any((0, 2)))
            if body.size:
                keys.append(float(v))
                rows.append(float(body.mean()))
        sacrum = np.flatnonzero(((self.codes == SACRUM) & (np.abs(self.b) < 12)).any((0, 2)))
        if sacrum.size:
            keys += [24.6, 24.6 + np.ptp(sacrum) * self.zoom[1] / SACRAL_MM]
            rows += [float(sacrum[0]), float(sacrum[-1]) + 1e-3]
        order = np.argsort(rows)
        return np.interp(
            np.arange(self.codes.shape[1]), np.array(rows)[order], np.maximum.accumulate(np.array(keys)[order])
        )

    def bones(self) -> np.ndarray:
        """Draw vertebrae, sacrum, discs (given ones and gaps between bodies) and plates; the discs' mask."""
        from scipy.ndimage import binary_closing, binary_dilation, distance_transform_edt

        codes, front = self.codes, self.in_front()
        vertebra = (codes >= 1) & (codes <= 25)
        self.tissue[vertebra] = np.where(front, Tissue.MARROW_BODY, Tissue.MARROW_POSTERIOR)[vertebra]
        self.instance[vertebra] = codes[vertebra]
        self.tissue[codes == SACRUM], self.instance[codes == SACRUM] = Tissue.MARROW_SACRUM, SACRUM
        self.instance[codes > DISC_OFFSET] = codes[codes > DISC_OFFSET]
        for v in np.unique(codes[vertebra]):
            if v > 1 and (vertebra & (codes == v + 1)).any():
                self._gap(int(v), front)
        disc = self.instance > DISC_OFFSET
        given = disc.copy()
        # Cracks of given discs, and the shell of nothing around them.
        disc |= binary_closing(disc | vertebra, np.ones((1, 3, 1)), 2) & binary_dilation(disc) & (codes == 0) & front
        index = distance_transform_edt(~given, return_distances=False, return_indices=True) if given.any() else None
        if index is not None:
            self.instance[disc] = self.instance[tuple(index)][disc]
        depth = distance_transform_edt(np.pad(disc, 1), self.zoom)[1:-1, 1:-1, 1:-1]
        # The ring is thick at the sides and thin towards the plates: a nucleus is what lies deep in its own slices.
        wide = _sheet_depth(disc, self.zoom)
        self.tissue[disc] = np.where((wide > 5.5) & (depth > 0), Tissue.NUCLEUS, Tissue.ANNULUS)[disc]
        plate = binary_dilation(disc, np.ones((3, 3, 1))) & (vertebra | (codes == SACRUM)) & front
        self.tissue[plate] = Tissue.ENDPLATE
        return disc

    def _gap(self, v: int, front: np.ndarray) -> None:
        """The disc below vertebra ``v``: what lies, along I, between its body and the next one."""
        from scipy.ndimage import binary_opening, distance_transform_edt

        sizes = morphometry.sizes_at(max(v, 2) + 0.5)
        rows = np.flatnonzero(np.abs(self.key - v - 0.5) < 1)
        if rows.size == 0:
            return
        box = (slice(None), slice(rows[0], rows[-1] + 1))
        upper, lower = (self.codes[box] == v) & front[box], (self.codes[box] == v + 1) & front[box]
        within = np.broadcast_to(np.abs(self.b[:, box[1]]) < 0.55 * sizes["width_lower"], upper.shape)
        within = within & (self.a[:, box[1]] > -1.2 * sizes["depth_lower"] - 0.5 * self.depth[None, box[1], None])
        above = np.maximum.accumulate(upper, axis=1)
        below = np.maximum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
        gap = above & below & within & (self.codes[box] == 0)
        gap &= (gap.sum(1, keepdims=True) * self.zoom[1]) <= 1.7 * sizes["disc"] + 3
        if not gap.any():
            return
        # A disc is as high as most of its columns, also where it slopes and no column meets both bodies.
        high = gap.sum(1) * self.zoom[1]
        most = 1.2 * float(np.percentile(high[high > 0], 85))
        apart = distance_transform_edt(~upper, self.zoom) + distance_transform_edt(~lower, self.zoom)
        disc = (gap | (apart < most)) & within & front[box] & (self.codes[box] == 0)
        self.instance[box][binary_opening(disc, np.ones((3, 1, 3)))] = DISC_OFFSET + v

    def canal(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw epidural fat, sac, roots and cord (as :func:`spineps.synth.canal.dural_sac`).

        Returns:
            Masks of the sac, and of the cord with the bundle of roots below it.
        """
        key, rng = self.key, self.rng
        m = morphometry
        rows = np.flatnonzero(column_mask(self.codes).any((0, 2)))
        span = (np.arange(len(key)) >= rows[0]) & (np.arange(len(key)) <= rows[-1])
        hollow = (self.tissue == Tissue.MARROW_SACRUM) & (self.key > 24.8)[None, :, None]
        free = ((self.tissue == 0) | hollow) & span[None, :, None]
        tube = free & (self._radius(0.0, 0.5 * self.depth + 1, 0.5 * self.width + 1.5) < 1)
        self.tissue[tube & (self.track.known & (key < SAC_END + 1.5))[None, :, None]] = Tissue.EPIDURAL_FAT
        self.tissue[tube & (self.tissue == Tissue.EPIDURAL_FAT) & (self.noise(4.0) > 1.3)] = Tissue.EPIDURAL_VEIN
        end = np.clip((SAC_END - key) / 1.2, 0, 1) ** 0.5
        gap = np.interp(key, m.SAC_KEYS, m.SAC_GAP)
        width = np.minimum(self.width * np.interp(key, m.SAC_KEYS, m.SAC_WIDTH), 25.0)
        half_depth = np.minimum(self.depth * np.interp(key, m.SAC_KEYS, m.SAC_DEPTH), self.depth - gap + 1) / 2 * end
        half_depth = np.maximum(half_depth, 0.1)
        middle = np.where(self.depth > 0, -self.depth / 2 + gap + half_depth, 0)
        known = (self.track.known & (key < SAC_END))[None, :, None]
        sac = free & known & (self._radius(middle, half_depth, np.maximum(width / 2 * end, 0.1)) < 1)
        self.tissue[sac] = Tissue.CSF
        taper = np.clip((CONUS - key) / 1.1, 0, 1) ** 0.6
        deep = np.minimum(np.interp(key, m.CORD_KEYS, m.CORD_DEPTH) / 2, 0.86 * half_depth) * taper
        wide = np.minimum(np.interp(key, m.CORD_KEYS, m.CORD_WIDTH) / 2, 0.43 * width) * taper
        room = np.interp(key, [1, 6, 12, 16, 19, 21], [0, -0.15, -0.3, 0, 0.3, 0.4]) * (half_depth - deep)
        cord = sac & (key < CONUS)[None, :, None] & (self._radius(middle + room, deep, wide) < 1)
        share = np.clip((key - CONUS + 1.2) / 1.2, 0, 1) * np.interp(key, [CONUS, SAC_END], [1.0, 0.3])
        bundle_depth = half_depth * rng.uniform(0.3, 0.65) * share
        sunk = rng.uniform(0.2, 0.95) * (half_depth - bundle_depth)
        bundle = self._radius(middle + sunk, bundle_depth, width / 2 * rng.uniform(0.5, 0.85) * share) < 1
        bundle &= sac & ~cord & (key > CONUS - 1.2)[None, :, None]
        strands = self.noise((2.5, 60.0, 2.5))
        stray = sac & (key > CONUS)[None, :, None] & (strands > rng.uniform(1.2, 2.2))
        self.tissue[stray | (bundle & (strands > rng.uniform(-1.6, -0.2)))] = Tissue.CAUDA
        self.tissue[cord] = Tissue.CORD
        return sac, cord | bundle

    def lost(self) -> np.ndarray:
        """A tube where the canal must be, but no ring of bone says where exactly."""
        rows = np.flatnonzero(column_mask(self.codes).any((0, 2)))
        span = np.zeros(len(self.key), bool)
        span[rows[0] : rows[-1] + 1] = True
        lost = (span & ~self.track.known & (self.key < SAC_END))[None, :, None]
        return lost & (self.a * self.a + self.b * self.b < 15.0**2) & (self.tissue == 0)

    def _radius(self, middle: np.ndarray | float, depth: np.ndarray, width: np.ndarray) -> np.ndarray:
        x = (self.a - np.broadcast_to(middle, len(depth))[None, :, None]) / np.maximum(depth, 0.05)[None, :, None]
        y = self.b / np.maximum(width, 0.05)[None, :, None]
        return (np.abs(x) ** 2.3 + np.abs(y) ** 2.3).astype(np.float32)

    def fill(self, where: np.ndarray, tissue: Tissue | np.ndarray) -> None:
        """Draw where nothing is drawn yet."""
        free = np.broadcast_to(where, self.tissue.shape) & (self.tissue == 0)
        self.tissue[free] = tissue[free] if isinstance(tissue, np.ndarray) else tissue


def _sheet_depth(mask: np.ndarray, zoom: tuple[float, float, float]) -> np.ndarray:
    """Distance (mm) to the rim of a flat thing: of its projection along I, one slab of rows at a time."""
    from scipy.ndimage import distance_transform_edt, label

    depth = np.zeros(mask.shape, np.float32)
    parts, count = label(mask)
    from scipy.ndimage import find_objects

    for k, box in enumerate(find_objects(parts, count), 1):
        part = parts[box] == k
        if part.any(1).sum() * zoom[0] * zoom[2] < 60:
            continue
        flat = distance_transform_edt(np.pad(part.any(1), 1), (zoom[0], zoom[2]))[1:-1, 1:-1]
        depth[box][part] = np.broadcast_to(flat[:, None], part.shape)[part]
    return depth
