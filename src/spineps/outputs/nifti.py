"""NIfTI in and out: everything that can be wrong with a file is found here, named, and given a cure."""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from spineps.errors import (
    EmptyError,
    GeometryError,
    InputNotFoundError,
    OutOfMemoryError,
    ShapeError,
    SpinepsError,
    UnreadableInputError,
    ValueRangeError,
)
from spineps.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: Voxel sizes (mm) that a scan of a person can have; beyond lie unit mix-ups and damaged headers.
SMALLEST_VOXEL, LARGEST_VOXEL = 0.01, 50.0
#: Two affines that move no corner by more than this many mm are the same.
SAME_MM = 0.1
#: Factor to mm for the NIfTI unit codes metre, millimetre, micrometre; 0 (unknown) is taken as mm.
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
#: qform and sform code of every output, as in the published system.
ALIGNED = 2


@dataclass(frozen=True)
class ImageInfo:
    """What a result must remember of its input.

    Attributes:
        name: file name, without folders.
        sha256: of the file's bytes (of voxels and affine for an image in memory).
        dtype: type in which the voxels are stored.
        values: type of the grey values, which is another where the file scales them.
    """

    name: str
    sha256: str
    dtype: str
    values: str | None = None


def read_image(path: str | Path) -> tuple[Volume, ImageInfo, list[str]]:
    """Read one 3-D scan.

    Returns:
        The scan as float32 with its affine in mm, what to remember of the file, and warnings for the user.

    Raises:
        InputNotFoundError: no such file.
        UnreadableInputError: not NIfTI, truncated or not permitted.
        ShapeError: not one volume, or only one voxel thick.
        GeometryError: voxel sizes or affine make no sense.
        ValueRangeError: RGB, complex or no finite voxel.
        EmptyError: all voxels have the same value.
        OutOfMemoryError: the image does not fit into memory.
    """
    import nibabel as nib

    path = Path(path)
    digest = file_sha256(path)
    try:
        with _opened(path) as stream:
            head = stream.read(540)
            kind = _nifti_class(path, head)
            stream.seek(0)
            # nibabel repairs zero and negative voxel sizes silently, so the header is looked at before it does.
            raw = kind.header_class.from_fileobj(stream, check=False)
            stream.seek(0)
            _check_header(path, raw)
            image = kind.from_stream(stream)
            affine, warnings = _affine(path, raw, image)
            array = np.asarray(image.dataobj)
            while stream.read(1 << 20):  # only at its end does a zipped file tell that it is damaged (checksum)
                pass
    except SpinepsError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{path} does not fit into memory.", "Use a machine with more memory.") from error
    except (OSError, EOFError, zlib.error, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise UnreadableInputError(
            f"{path} cannot be read ({_first_line(error)}): it is truncated or damaged.",
            "Copy or export the file again.",
        ) from error
    volume, value_warnings = as_volume(array, affine, str(path))
    return (
        volume,
        ImageInfo(path.name, digest, str(image.get_data_dtype()), array.dtype.name),
        warnings + value_warnings,
    )


def read_labels(path: Path) -> Volume:
    """A mask that this package wrote."""
    import nibabel as nib

    image: Any = nib.load(path)
    return Volume(np.asarray(image.dataobj), np.asarray(image.affine, float))


def from_memory(image: Any) -> tuple[Volume, ImageInfo, list[str]]:
    """The same checks for an image in memory: nibabel image, TPTBox ``NII`` or :class:`Volume`."""
    if isinstance(image, Volume):
        array, affine = image.array, image.affine
    else:
        image = getattr(image, "nii", image)  # TPTBox NII wraps a nibabel image
        if not hasattr(image, "dataobj") or not hasattr(image, "affine"):
            raise TypeError(f"an image is a path, nibabel image, TPTBox NII or Volume, not {type(image).__name__}")
        array, affine = np.asarray(image.dataobj), image.affine
    name = "the image in memory"
    affine = np.asarray(affine, float)
    _check_affine(name, affine)
    volume, warnings = as_volume(array, affine, name)
    digest = hashlib.sha256(np.ascontiguousarray(volume.array).data)
    digest.update(repr((volume.shape, volume.affine.tolist())).encode())
    return volume, ImageInfo("image", digest.hexdigest(), str(array.dtype), array.dtype.name), warnings


def as_volume(array: np.ndarray, affine: np.ndarray, name: str) -> tuple[Volume, list[str]]:
    """Voxels as finite float32 in three dimensions, with warnings about what had to be changed."""
    if array.dtype.names or array.dtype.kind not in "iufb":
        kind = "colours (RGB)" if array.dtype.names else f"{array.dtype} numbers"
        cure = "Take the magnitude image." if array.dtype.kind == "c" else "Convert it to a grey-value image."
        raise ValueRangeError(f"{name} holds {kind}, not grey values.", cure)
    array = _three_dimensional(array, name)
    warnings = []
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is counted below
        array = array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        count = int(array.size - finite.sum())
        if count == array.size:
            raise ValueRangeError(f"{name} has no finite voxel.", "Check how the image was exported.")
        array[~finite] = array[finite].min()
        warnings.append(f"{count} voxels are NaN or infinite; they were set to the minimum of the others.")
    if array.min() == array.max():
        raise EmptyError(
            f"{name} is constant (every voxel is {array.flat[0]:g}): there is nothing to segment.",
            "Check that the right file was given.",
        )
    return Volume(array, affine), warnings


def write_nifti(volume: Volume, stream: IO[bytes], description: str = "spineps") -> None:
    """Write ``.nii.gz`` content: NIfTI-1 (NIfTI-2 beyond 32,767 voxels per side), sform = affine, qform the same unless
    sheared; gzip without time stamp and name, so that equal content gives equal bytes.
    """
    import nibabel as nib

    kind = nib.Nifti1Image if max(volume.shape) <= 32767 else nib.Nifti2Image
    image = kind(np.asanyarray(volume.array), volume.affine)
    image.set_sform(volume.affine, code=ALIGNED)
    image.set_qform(volume.affine, code=ALIGNED)
    if _corner_distance(volume.shape, image.get_qform(), volume.affine) > 0.01 * min(volume.zoom):
        image.set_qform(None, code=0)  # a quaternion cannot hold shear
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as zipped:
        image.to_stream(zipped)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes.

    Raises:
        InputNotFoundError, UnreadableInputError: see :func:`read_image`.
    """
    if path.is_dir():
        raise InputNotFoundError(f"{path} is a folder, not a scan.", "Use `spineps dataset -i FOLDER` for many scans.")
    try:
        with path.open("rb") as stream:
            return _sha256(stream)
    except FileNotFoundError as error:
        raise InputNotFoundError(f"{path} does not exist.", _neighbours(path)) from error
    except PermissionError as error:
        raise UnreadableInputError(f"{path} may not be read.", "Change its permissions.") from error
    except OSError as error:
        raise UnreadableInputError(f"{path} cannot be read ({_first_line(error)}).", "Check the disk.") from error


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes, whatever the name says."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream  # type: ignore[misc]


def _nifti_class(path: Path, head: bytes) -> Any:
    import nibabel as nib

    if head[344:347] == b"n+1":
        return nib.Nifti1Image
    if head[4:7] == b"n+2":
        return nib.Nifti2Image
    cure = "Give a NIfTI file (.nii or .nii.gz)."
    if head[128:132] == b"DICM":
        cure = "This is DICOM: `spineps sample` takes it; elsewhere convert it first, for instance with dcm2niix."
    elif head[344:347] == b"ni1" or head[4:7] == b"ni2":
        cure = "This is the header of a .hdr/.img pair: convert the pair to one .nii.gz file."
    elif head[:2] == b"PK":
        cure = "This is a zip archive: unpack it, and give the file or the DICOM folder in it."
    elif not head:
        cure = "The file is empty: copy or export it again."
    raise UnreadableInputError(f"{path} is not a NIfTI image.", cure)


def _check_header(path: Path, header: Any) -> None:
    dims = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : dims + 1]] if 0 < dims < 8 else []
    if not shape or min(shape) < 1:
        raise UnreadableInputError(f"{path} has a damaged header (dim {header['dim'].tolist()}).", "Export it again.")
    if header["datatype"] in (128, 2304):
        raise ValueRangeError(f"{path} holds colours (RGB), not grey values.", "Convert it to a grey-value image.")
    # Refuse several volumes before reading gigabytes of them.
    _three_dimensional(np.broadcast_to(np.uint8(0), shape), str(path))


def _affine(path: Path, raw: Any, image: Any) -> tuple[np.ndarray, list[str]]:
    """The affine in mm.  sform wins over qform, qform over bare voxel sizes."""
    warnings: list[str] = []
    zooms = np.array(raw["pixdim"][1:4], float)
    sane = bool(np.all(np.isfinite(zooms)) and np.all(zooms > 0))
    has_s, has_q = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    if not sane and not has_s:
        raise GeometryError(
            f"{path} has impossible voxel sizes {tuple(zooms.tolist())} mm.", "Repair its header or export it again."
        )
    affine = np.array(image.header.get_sform() if has_s else image.header.get_best_affine(), float)
    unit = UNITS.get(int(raw["xyzt_units"]) & 7, 1.0)
    if unit != 1.0:
        warnings.append(f"The header gives lengths in {'metres' if unit > 1 else 'micrometres'}; converted to mm.")
        affine[:3] *= unit
        zooms = zooms * unit
    _check_affine(str(path), affine)
    if has_s and has_q and sane:
        distance = _corner_distance(image.shape[:3], image.header.get_qform() * np.array([[unit]] * 3 + [[1]]), affine)
        if distance > SAME_MM and not _sheared(affine):
            warnings.append(f"qform and sform differ by up to {distance:.1f} mm; the sform is used.")
    elif has_s and not sane:
        warnings.append(f"The header's voxel sizes {tuple(zooms.tolist())} make no sense; those of the sform are used.")
    elif not has_s and not has_q:
        warnings.append("The header has neither sform nor qform: position and left/right are unknown, and assumed.")
    return affine, warnings


def _check_affine(name: str, affine: np.ndarray) -> None:
    cure = "Repair its header or export it again."
    if affine.shape != (4, 4) or not np.all(np.isfinite(affine)):
        raise GeometryError(f"{name} has an affine that is not a finite 4 x 4 matrix.", cure)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if zooms.min() < SMALLEST_VOXEL or zooms.max() > LARGEST_VOXEL:
        sizes = " x ".join(f"{z:g}" for z in zooms)
        raise GeometryError(f"{name} has impossible voxel sizes {sizes} mm.", cure)
    if abs(np.linalg.det(affine[:3, :3] / zooms)) < 0.1:
        raise GeometryError(f"{name} has an affine whose axes nearly coincide.", cure)


def _three_dimensional(array: np.ndarray, name: str) -> np.ndarray:
    shape = array.shape
    if array.ndim > 3 and set(shape[3:]) <= {1}:
        array = array.reshape(shape[:3])
    if array.ndim > 3:
        count = int(np.prod(shape[3:]))
        raise ShapeError(
            f"{name} holds {count} volumes (shape {_times(shape)}), not one.",
            "Split it, for instance with `fslsplit` or nibabel's `four_to_three`, and give one volume.",
        )
    if array.ndim < 3 or min(array.shape) < 2:
        raise ShapeError(f"{name} is a single slice (shape {_times(shape)}), not a volume.", "Give the whole 3-D scan.")
    return array


def _sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


def _corner_distance(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray) -> float:
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    difference = corners @ (first - second)[:3, :3].T + (first - second)[:3, 3]
    return float(np.sqrt((difference**2).sum(axis=1)).max())


def _neighbours(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.name.lower().endswith((".nii", ".nii.gz")))
    except OSError:
        return f"The folder {path.parent} does not exist either. Check the path."
    return f"In that folder there are: {', '.join(names[:5])}." if names else "Check the path."


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
