"""A DICOM series as an image of this package, through dcm2niix.

dcm2niix knows the vendors and the compressions.  Where its image lies is compared with where the frames say they are,
because it places sheared MR stacks wrongly without a word (tried with v1.0.20260724).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spineps.errors import GeometryError, UnreadableInputError
from spineps.outputs.dicom.series import Series, need, series_of, usable
from spineps.outputs.paths import DERIVATIVE_NAME, Scan, derivative_folder, output_paths
from spineps.outputs.writer import Writer
from spineps.volume import Grid, Volume

#: Voxels by which dcm2niix's image may lie beside the frames (it takes the affine from two of them).
BESIDE = 0.2


def dicom_scan(
    path: Path,
    wanted: str | None = None,
    derivative_name: str = DERIVATIVE_NAME,
    layout: str = "published",
    save: bool = True,
) -> tuple[Scan, Series, Volume]:
    """A series as NIfTI among its results, and what names them.

    Results hang beside the DICOM folder.  ``sub`` is the folder's name unless that holds a part of the patient's name,
    ``ses`` comes from the study's UID and ``sequ`` is the series' number.

    Args:
        path: DICOM folder or file.
        wanted: see :func:`~spineps.outputs.dicom.series.choose`.
        derivative_name, layout: see :func:`~spineps.outputs.paths.output_paths`.
        save: write the NIfTI (and a JSON that says which series it is).
    """
    series = usable(series_of(path, wanted))
    scan = _named(path, series)
    paths = output_paths(scan, derivative_name, None, layout)
    # In the bids layout the image goes where the validator does not look: BIDS has no CT.
    folder = paths["out_raw"].parent if layout == "bids" else paths["out_spine"].parent
    name = "_".join([*(f"{key}-{value}" for key, value in scan.entities.items()), scan.format])
    # Its sources are named from one folder for all scans of a data set.
    root = derivative_folder(scan.dataset, derivative_name, layout) / "work" if layout == "bids" else folder
    scan = replace(scan, path=folder / f"{name}.nii.gz", root=root)
    volume, version = convert(series)
    about = {
        "Modality": series.modality,
        "SeriesNumber": series.number,
        "StudyInstanceUID": series.study,
        "SeriesInstanceUID": series.uid,
        "ConversionSoftware": "dcm2niix",
        "ConversionSoftwareVersion": version,
    }
    if save:
        with Writer() as writer:
            writer.image(scan.path, volume)
            writer.json(folder / f"{name}.json", about)
    return scan, series, volume


def convert(series: Series) -> tuple[Volume, str]:
    """The image, on the frames' own grid or, for a tilted gantry, straightened by dcm2niix; and dcm2niix's version.

    Raises:
        OptionError: dcm2niix is not installed.
        UnreadableInputError: dcm2niix cannot read the series, or finds several volumes in it.
        GeometryError: the image does not lie where the frames are.
    """
    need("dcm2niix")
    import dcm2niix
    import nibabel as nib

    with TemporaryDirectory(prefix="spineps-dicom-") as name:
        source, out = Path(name, "in"), Path(name, "out")
        source.mkdir()
        out.mkdir()
        for number, file in enumerate(series.files):
            _linked(file, source / f"{number:06d}.dcm")
        # -m n: never merge what differs; -b n: no sidecar, it can hold names; -ba y -c "": nor the header.
        flags = ["-b", "n", "-ba", "y", "-c", "", "-z", "n", "-m", "n", "-w", "2", "-f", "v"]
        ran = subprocess.run([dcm2niix.bin, *flags, "-o", str(out), str(source)], capture_output=True, text=True)
        made = sorted(out.glob("*.nii"))
        tilted = [file for file in made if "_Tilt" in file.name]
        files = tilted or [file for file in made if "_Eq" not in file.name]
        if len(files) != 1:
            raise _failed(series, len(files), ran.stdout + ran.stderr)
        image: Any = nib.load(files[0])
        array, affine = np.asarray(image.dataobj), np.asarray(image.affine, float)
    volume = Volume(_whole_numbers(array), affine)
    if array.ndim != 3:
        raise _failed(series, array.shape[-1], "")
    _check_place(series, volume.grid, straightened=bool(tilted))
    return volume, dcm2niix.__version__


def _check_place(series: Series, made: Grid, straightened: bool) -> None:
    assert series.grid is not None
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in series.grid.shape], indexing="ij"), -1).reshape(-1, 3)
    index = made.to_index(series.grid.to_world(corners))
    last = np.array(made.shape) - 1
    if straightened:  # resampled: the frames must only lie inside
        wrong = bool((index < -1).any() or (index > last + 1).any())
    else:
        wrong = sorted(made.shape) != sorted(series.grid.shape)
        wrong = wrong or bool(np.minimum(np.abs(index), np.abs(index - last)).max() > BESIDE)
    if wrong:
        cure = "Take a series without in-plane shift between its slices, or convert it otherwise and give the NIfTI."
        raise GeometryError(f"dcm2niix does not place series {series.key} where its frames say they are.", cure)


def _failed(series: Series, count: int, said: str) -> UnreadableInputError:
    if count > 1:
        cure = "Convert it with dcm2niix yourself and give the NIfTI file that you want."
        return UnreadableInputError(f"Series {series.key} holds {count} volumes.", cure)
    lines = [line.strip() for line in said.splitlines() if re.match(r"\s*(error|unsupported|unable)", line, re.I)]
    reason = re.sub(r"(/|[A-Z]:\\)\S*", "a file", lines[0]) if lines else "it makes no image of it"
    cure = "Decompress it first (`gdcmconv --raw`, `dcmdjpeg`), or export it uncompressed."
    return UnreadableInputError(f"dcm2niix cannot convert series {series.key}: {reason}.", cure)


def _named(path: Path, series: Series) -> Scan:
    folder = (path if path.is_dir() else path.parent).resolve()
    label = re.sub(r"[^0-9A-Za-z]+", "", folder.name)
    code = hashlib.sha256(series.study.encode()).hexdigest()
    if not label or _tells(folder.name, series.person):
        label = f"anon{code[:8]}"
    entities = {"sub": label, "ses": code[:6], "sequ": series.key.replace(".", "p")}
    return Scan(folder.parent / "image", folder.parent, entities, series.format, root=folder.parent)


def _tells(text: str, person: str) -> bool:
    """Does ``text`` hold a part of a name?  Umlauts count in any spelling, names of two letters as words alone.

    >>> _tells("P0012_mueller", "Müller^Eva"), _tells("clinic", "Li^Wu"), _tells("wu_2", "Li^Wu"), _tells("P1", "P1")
    (True, False, True, False)
    """
    words = [re.findall(r"[a-z]+", _plain(part)) for part in (text, person)]
    return any(word in words[0] or (len(word) > 2 and word in _plain(text)) for word in words[1] if len(word) > 1)


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.lower().replace("ß", "ss"))
    return re.sub("([aou])e", r"\1", "".join(c for c in letters if not unicodedata.combining(c)))


def _linked(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.absolute())
    except OSError:  # Windows without the right to make links
        shutil.copyfile(file, link)


def _whole_numbers(array: np.ndarray) -> np.ndarray:
    """Grey values in the smallest fitting type: rescaled CT comes as float64."""
    if array.dtype.kind == "f" and np.array_equal(array, np.rint(array)) and np.abs(array).max(initial=0) < 2**15:
        return array.astype(np.int16)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
