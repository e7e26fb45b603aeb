"""Real shapes for training: label volumes of real people, dressed with what they lack, painted later on the device.

Generated people have no true pelvis, shoulders, skull or neck: what a network has never seen it calls vertebra.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spineps.anatomy import CLASS_IDS, DISC_OFFSET, SACRUM
from spineps.errors import OptionError
from spineps.synth import morphometry
from spineps.synth.canvas import smooth_noise
from spineps.synth.tissues import Tissue
from spineps.training.cache import FULL, UNKNOWN
from spineps.training.real import read_volume

logger = logging.getLogger(__name__)

#: Masks of whole vertebrae; any other file is a volume of a trunk.
VERTEBRA_MASK = "_seg-vert_msk.nii.gz"
#: Codes of a trunk (BodyParts3D, voxelised): 1..24 C1..L5, 26 sacrum, 102..124 disc below C2..L5, and these.
TRUNK: dict[int, Tissue] = {
    26: Tissue.MARROW_SACRUM, 40: Tissue.RIB, 41: Tissue.OTHER_BONE, 42: Tissue.CARTILAGE, 50: Tissue.MUSCLE,
    51: Tissue.KIDNEY, 52: Tissue.ARTERY, 53: Tissue.VEIN, 54: Tissue.AIRWAY, 55: Tissue.OESOPHAGUS, 56: Tissue.LIVER,
    57: Tissue.SPLEEN, 58: Tissue.BOWEL, 59: Tissue.BOWEL, 60: Tissue.HEART, 61: Tissue.AIRWAY, 62: Tissue.BRAIN,
    63: Tissue.VEIN, 64: Tissue.ORGAN, 65: Tissue.ORGAN,
}  # fmt: skip
#: Coarse labels of :data:`spineps.training.loss.COARSE_GROUPS`.
VERTEBRA, DISC, WHOLE, ELSE, CORD, CANAL = 1, 2, 5, 6, 7, 8
#: Holes of rings of bone that may be the canal, mm^2, and how far (mm) rows count that have none themselves.
HOLE_MM2, HOLE_REACH = (70.0, 900.0), 18.0
#: Conus, end of the dural sac (level coordinates, 20 = L1, 26 = S2); sacral rows per level, mm; largest coccyx, mm.
CONUS, SAC_END, SACRAL_MM, COCCYX_WIDTH = 20.3, 26.3, 20.0, 30.0
#: Bone behind the sacral canal, mm.
SACRAL_ROOF = 5.0
#: Rows of a chunk and of the overlap of two, mm.
CHUNK, OVERLAP = 200.0, 45.0


@dataclass(frozen=True, eq=False)
class Track:
    """The canal, one value per row (axis I), in voxels; ``known`` where rings of bone are near."""

    p: np.ndarray
    r: np.ndarray
    depth: np.ndarray
    width: np.ndarray
    known: np.ndarray


def anatomy_arrays(
    sources: Iterable[Path], zoom: tuple[float, float, float], held_out: Iterable[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Chunks of real people: (name, uint8 (3, P, I, R) of tissue, coarse label and instance).

    Args:
        sources: files, or folders of masks ``<name>_seg-vert_msk.nii.gz`` (1..25 C1..L6).  Masks in a folder with a
            ``<name>_ct.nii.gz`` beside them are left out: ``cache-real`` takes them with their image.  A file of
            another name is a trunk in the codes of ``TRUNK``.
        zoom: voxel size in mm.
        held_out: files whose name contains one of these are left out.

    Raises:
        OptionError: a file that was named is held out.
    """
    refused = tuple(held_out)
    for source in sources:
        files = sorted(source.glob(f"*{VERTEBRA_MASK}")) if source.is_dir() else [source]
        for file in files:
            held = any(name in file.name for name in refused)
            if held and not source.is_dir():
                raise OptionError(f"{file.name} is held out of training.", "Leave it out.")
            if held or (source.is_dir() and file.with_name(file.name.replace("_seg-vert_msk", "_ct")).is_file()):
                continue
            trunk = not file.name.endswith(VERTEBRA_MASK)
            codes = _codes(file, zoom)
            rng = np.random.default_rng(list(file.name.encode()))
            dressed = dressed_trunk(codes, zoom, rng) if trunk else dressed_spine(codes, zoom, rng)
            name = file.name.removesuffix(".nii.gz").removesuffix("_seg-vert_msk")
            rows = dressed.shape[2]
            step = max(round((CHUNK - OVERLAP) / zoom[1]), 1)
            count = max(1, -(-(rows - round(OVERLAP / zoom[1])) // step))
            for k in range(count):
                yield f"{name}-{k}", dressed[:, :, k * step : k * step + round(CHUNK / zoom[1])]


def _codes(file: Path, zoom: tuple[float, float, float]) -> np.ndarray:
    """Labels (P, I, R) on the training grid: foreground by its share of a voxel, which label by the nearest voxel."""
    from scipy.ndimage import distance_transform_edt

    from spineps.inference.resample import to_model_grid
    from spineps.volume import bounding_box

    volume = read_volume(file).reoriented("PIR")
    if not file.name.endswith(VERTEBRA_MASK):
        return volume.rescaled(zoom).array.astype(np.uint8)
    box = bounding_box(volume.array > 0, 8)
    volume = volume.cropped(box) if box is not None else volume
    share = to_model_grid(volume.with_array((volume.array > 0).astype(np.uint8)), zoom).array
    nearest = volume.rescaled(zoom).array
    index = distance_transform_edt(nearest == 0, return_distances=False, return_indices=True)
    return np.where(share > 0.5, nearest[tuple(index)], 0).astype(np.uint8)


def canal_track(codes: np.ndarray, zoom: tuple[float, float, float]) -> Track:
    """The canal from the holes that vertebrae, discs and sacrum enclose, a few rows joined where one leaves gaps."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter1d, label

    column = column_mask(codes)
    occupied = np.flatnonzero(column.any((0, 1)))
    middle = gaussian_filter1d(_row_means(column, 2), 8)
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


def _row_means(mask: np.ndarray, axis: int) -> np.ndarray:
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
        """Draw epidural fat, sac, roots and cord (as :func:`spineps.synth.canal.dural_sac`); masks of sac and cord."""
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
        roots = sac & (key > CONUS - 1.2)[None, :, None]
        strands = self.noise((2.5, 60.0, 2.5)) + 0.9 * self.a / np.maximum(half_depth, 3)[None, :, None]
        self.tissue[roots & (strands > rng.uniform(0.3, 1.0))] = Tissue.CAUDA
        self.tissue[cord] = Tissue.CORD
        return sac, cord

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


def dressed_trunk(codes: np.ndarray, zoom: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """A trunk in the codes of ``TRUNK``: uint8 (3, P, I, R) of tissue, coarse label, instance; the rest is certain."""
    scene = Dressing(codes, zoom, rng)
    disc = scene.bones()
    stem = (codes == 62) & (scene.a**2 + scene.b**2 < 20.0**2)
    first = int(np.flatnonzero((codes == 1).any((0, 2)))[0]) if (codes == 1).any() else 0
    row = np.arange(codes.shape[1])[None, :, None]
    sac, cord = scene.canal()
    lost = scene.lost()
    for code, kind in TRUNK.items():
        scene.fill(codes == code, kind)
    # The stem of the brain above C1 may be called cord.
    unknown = lost | ((row < first) & (row > first - 20 / zoom[1]) & (np.abs(scene.b) < 15) & stem)
    _organs(scene)
    labels = np.full(codes.shape, FULL, np.uint8)
    labels[(codes >= 1) & (codes <= 25)] = VERTEBRA
    labels[disc] = DISC
    sacrum = codes == SACRUM
    labels[sacrum] = FULL + CLASS_IDS.index(SACRUM)
    if sacrum.any():
        across = np.array([np.ptp(np.flatnonzero(s.any(0))) if s.any() else 0 for s in np.moveaxis(sacrum, 1, 0)])
        wide = np.flatnonzero(across * zoom[2] > COCCYX_WIDTH)
        coccyx = row > (wide[-1] if wide.size else 0)
        unknown |= sacrum & coccyx
        # What a network calls the inside of the sacrum below the sac is open.
        unknown |= (
            np.isin(scene.tissue, (Tissue.EPIDURAL_FAT, Tissue.EPIDURAL_VEIN)) & (scene.key > 24.8)[None, :, None]
        )
    labels[sac], labels[cord] = CANAL, CORD
    labels[unknown] = UNKNOWN
    return np.stack([scene.tissue, labels, scene.instance])


def _organs(scene: Dressing) -> None:
    """The body around a trunk's bones and organs: lungs, back muscles, fat, skin."""
    from scipy.ndimage import binary_erosion, binary_fill_holes, distance_transform_edt

    codes, zoom, tissue = scene.codes, scene.zoom, scene.tissue
    half = codes[::2, ::2, ::2]
    mm = tuple(2 * z for z in zoom)
    patches, fine = scene.noise(14.0), scene.noise((5.0, 30.0, 5.0))
    gut = np.isin(codes, (58, 59))
    tissue[gut & (patches > 1.1)], tissue[gut & (patches < -1.2)] = Tissue.GAS, Tissue.FLUID
    tissue[(codes == 63) & (scene.noise(60.0) > 0)] = Tissue.ARTERY
    for row in np.flatnonzero((codes == 54).any((0, 2))):
        airway = binary_fill_holes(codes[:, row] == 54)
        tissue[:, row][airway & (tissue[:, row] == 0)] = Tissue.AIRWAY
    far = distance_transform_edt(half == 0, mm)
    grown = np.stack([binary_fill_holes(s) for s in np.moveaxis(far <= 24, 1, 0)], 1)
    inside = distance_transform_edt(grown, mm)
    body, core = _fine(inside > 12, codes.shape), _fine(inside > 22, codes.shape)
    lung = _fine(_lungs(half, mm), codes.shape)
    scene.fill(lung & body, Tissue.LUNG)
    brain = _fine(distance_transform_edt(half != 62, mm) <= 7, codes.shape)
    scene.fill(
        brain & (scene.key <= 1)[None, :, None] & (np.arange(codes.shape[1]) < _first(codes, 1))[None, :, None],
        Tissue.CSF,
    )
    bone = column_mask(half) | (half == 40)
    near = _fine(distance_transform_edt(~bone, mm) <= 32, codes.shape)
    aside = np.abs(scene.b)
    front = -0.5 * scene.depth[None, :, None] + 0.25 * aside
    back = core & near & (scene.a + 3 * patches > front) & (aside + 6 * patches < 75)
    scene.fill(back & (fine < 1.1), Tissue.MUSCLE)
    # The pharynx, from the atlas to the trachea.
    rows = (np.arange(codes.shape[1]) > _first(codes, 1)) & (np.arange(codes.shape[1]) <= _first(codes, 54))
    throat = (scene.a + 0.5 * scene.depth[None, :, None] + 29) / 6
    scene.fill(rows[None, :, None] & (throat**2 + (scene.b / 10) ** 2 < 1), Tissue.AIRWAY)
    limb = _fine(distance_transform_edt(half != 41, mm) <= 30, codes.shape)
    upper = (np.arange(codes.shape[1]) < _first(codes, 40) + round(20 / zoom[1]))[None, :, None]
    limb &= upper | (aside + 8 * patches > 70)
    scene.fill(core & (limb | upper) & (patches < 0.5), Tissue.MUSCLE)
    scene.fill(core & (patches > 1.8), Tissue.BOWEL)
    scene.fill(core, Tissue.FAT)
    rim = body & ~binary_erosion(body, border_value=1)
    scene.fill(rim, Tissue.SKIN)
    scene.fill(body, Tissue.SUBCUTANEOUS_FAT)


def _first(codes: np.ndarray, code: int) -> int:
    rows = np.flatnonzero((codes == code).any((0, 2)))
    return int(rows[0]) if rows.size else 0


def _lungs(codes: np.ndarray, zoom: Sequence[float]) -> np.ndarray:
    """Inside the ribs, above the organs under the diaphragm, beside the mediastinum."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    from scipy.spatial import ConvexHull

    ribs, lung = np.isin(codes, (40, 42)), np.zeros(codes.shape, bool)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (codes.shape[0], codes.shape[2])), indexing="ij"), -1)
    rows = np.flatnonzero(ribs.any((0, 2)))
    organs = np.isin(codes, (51, 56, 57, 58))
    if rows.size == 0 or not organs.any():
        return lung
    for row in rows[round(15 / zoom[1]) :]:
        points = np.argwhere(ribs[:, max(row - 4, 0) : row + 5].any(1))
        if len(points) > 20 and np.ptp(points, 0).min() > 3:
            planes = ConvexHull(points).equations
            lung[:, row] = (grid @ planes[:, :2].T + planes[:, 2] < -9.0 / zoom[0]).all(-1)
    has = organs.any(1)
    top = np.where(has, organs.argmax(1), 0)
    distance, index = distance_transform_edt(~has, (zoom[0], zoom[2]), return_indices=True)
    # Beside the organs the lung reaches down into a cleft.
    top = gaussian_filter(top[tuple(index)] + 0.7 * distance / zoom[1], 2)
    lung &= np.arange(codes.shape[1])[None, :, None] < (top - 5.0 / zoom[1])[:, None]
    middle = _row_means(column_mask(codes), 2)
    lung &= np.abs(np.arange(codes.shape[2]) - middle[:, None])[None] * zoom[2] > 10
    lung &= distance_transform_edt(~(column_mask(codes) | np.isin(codes, (54, 55))), zoom) > 7
    return lung & (distance_transform_edt(~np.isin(codes, (52, 53, 60)), zoom) > 4)


def _fine(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask of every second voxel on all voxels, corners rounded."""
    from scipy.ndimage import uniform_filter

    for axis, n in enumerate(shape):
        mask = np.repeat(mask, 2, axis)[(slice(None),) * axis + (slice(n),)]
    return uniform_filter(mask.astype(np.float32), 3) > 0.5


def dressed_spine(codes: np.ndarray, zoom: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Vertebrae alone (1..25), with discs, canal and a body made up around them: (3, P, I, R) as a trunk's.

    Vertebrae are sure, cord and sac follow from them; the rest may be anything but vertebra; above the first body and
    below the last one nothing is known, for the spine goes on there.
    """
    codes = np.pad(codes, [(round(45 / zoom[0]), round(30 / zoom[0])), (0, 0), (round(30 / zoom[2]),) * 2])
    scene = Dressing(codes, zoom, rng)
    scene.bones()
    sac, cord = scene.canal()
    lost = scene.lost()
    _made_up(scene)
    labels = np.full(codes.shape, ELSE, np.uint8)
    vertebra = codes > 0
    labels[vertebra] = WHOLE
    labels[sac], labels[cord] = CANAL, CORD
    body = np.flatnonzero((vertebra & scene.in_front() & (np.abs(scene.b) < 12)).any((0, 2)))
    rows = np.arange(codes.shape[1])
    ends = (rows < body[0]) | (rows > body[-1]) if body.size else rows >= 0
    labels[(ends[None, :, None] & ~vertebra) | lost] = UNKNOWN
    return np.stack([scene.tissue, labels, scene.instance])


def _made_up(scene: Dressing) -> None:
    """Muscle behind, vessels and blobs of organs in front; lungs beside the thoracic spine, airway before the neck."""
    from scipy.ndimage import distance_transform_edt

    a, b, key = scene.a, scene.b, scene.key[None, :, None]
    front = -0.5 * scene.depth[None, :, None]
    size = np.interp(scene.key, [2, 8, 20, 24], [17, 20, 34, 35])[None, :, None]
    behind, near = (
        a > front + 0.2 * np.abs(b) + 2 * scene.noise(22.0),
        distance_transform_edt(scene.codes == 0, scene.zoom),
    )
    streaks, blobs, more = scene.noise((5.0, 30.0, 5.0)), scene.noise(22.0), scene.noise(11.0)
    spinous = np.interp(scene.key, [2, 7, 20], [40, 50, 55])[None, :, None]
    skin = spinous + scene.rng.uniform(12, 30) - (b / 28.0) ** 2 + 2 * blobs
    outside = (a > skin) & (scene.codes == 0)
    scene.fill(~outside & (a > skin - 2.0), Tissue.SKIN)
    scene.fill(~outside & (a > skin - 9.0), Tissue.SUBCUTANEOUS_FAT)
    scene.fill(~outside & behind & (near < 38) & (streaks < 1.1), Tissue.MUSCLE)
    scene.fill(~outside & behind, Tissue.FAT)
    # Regions pass into each other along a wavy border.
    wavy = key + 0.5 * blobs
    chest, neck = (wavy > 8.5) & (wavy < 19.5), wavy <= 8.5
    x = a - front + size
    artery = (x + 9) ** 2 + (b + np.where(chest, 10, 6)) ** 2 < 10.5**2
    vein = (x + 9) ** 2 + (b - 15) ** 2 < 10**2
    scene.fill(artery & ~neck, Tissue.ARTERY)
    scene.fill(vein & (key > 18), Tissue.VEIN)
    scene.fill(neck & ((x + 17) ** 2 + b**2 < 8**2), Tissue.AIRWAY)
    round_neck = ((x - 8) / 18) ** 2 + (b / 27) ** 2 + 0.15 * more < 1
    scene.fill(neck & ~outside & round_neck, Tissue.MUSCLE)
    scene.fill(~chest & ~neck & (((x - 16) / 22) ** 2 + ((np.abs(b) - 40) / 17) ** 2 < 1), Tissue.PSOAS)
    aside = (np.abs(b) + 4 * more > 18) | (x + 5 * more < -24)
    scene.fill(chest & ~outside & (near > 5) & aside & (blobs > -1.3), Tissue.LUNG)
    kinds = np.array(
        [Tissue.BOWEL, Tissue.FAT, Tissue.LIVER, Tissue.FAT, Tissue.ORGAN, Tissue.FAT, Tissue.MUSCLE], np.uint8
    )
    drawn = kinds[np.clip((blobs + 2.1) / 4.2 * len(kinds), 0, len(kinds) - 1).astype(int)]
    drawn[(drawn == Tissue.BOWEL) & (more > 0.8)] = Tissue.GAS
    scene.fill(~outside & (near > 3), drawn)
    scene.fill(~outside, Tissue.FAT)
