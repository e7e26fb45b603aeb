"""Real shapes for training: label volumes of real people, dressed with what they lack, painted later on the device.

Generated people have no true pelvis, shoulders, skull or neck: what a network has never seen it calls vertebra.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from spineps.anatomy import CLASS_IDS, SACRUM
from spineps.errors import OptionError
from spineps.synth.tissues import Tissue
from spineps.training.cache import FULL, UNKNOWN
from spineps.training.dressing import Dressing, column_mask, row_means
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
#: Largest coccyx, mm.
COCCYX_WIDTH = 30.0
#: Rows of a chunk and of the overlap of two, mm.
CHUNK, OVERLAP = 200.0, 45.0


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
    middle = row_means(column_mask(codes), 2)
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
