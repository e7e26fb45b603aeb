"""Where the frames of a DICOM series lie: classic files with one slice each, or enhanced files with many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import GeometryError
from spineps.volume import Grid

#: DICOM's patient coordinates run to Left and Posterior, NIfTI's to Right and Anterior (PS3.3 C.7.6.2.1.1).
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
#: Two directions count as one when no component of the unit vectors differs by more (DS strings are often cut short).
SAME_DIRECTION = 1e-3
#: Part of a slice step by which a slice may lie beside its place.  dcm2niix warns from about the same deviation on.
OFF_PLACE = 0.1


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Attributes:
        path: its file.
        index: its number in the file, from 0.
        across: (3,) RAS mm from one column to the next.
        down: (3,) RAS mm from one row to the next.
        origin: (3,) RAS mm of the centre of the first pixel.
        part: what tells volumes of one series apart (echo time, image type).
    """

    path: Path
    index: int
    across: np.ndarray
    down: np.ndarray
    origin: np.ndarray
    part: tuple[str, ...] = ()

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across rows and columns."""
        cross = np.cross(self.across, self.down)
        return np.asarray(cross / np.linalg.norm(cross))


def frames_of(header: Any, path: Path) -> list[Frame]:
    """Frames of one file, from a pydicom data set without pixels; empty where the file has no place in a patient."""
    try:
        if "PerFrameFunctionalGroupsSequence" not in header:
            return [_frame(path, 0, header, header, header, header)]
        shared = header.get("SharedFunctionalGroupsSequence", [{}])[0]
        return [
            _frame(
                path,
                index,
                *(
                    _group(own, shared, name)
                    for name in ("PixelMeasures", "PlaneOrientation", "PlanePosition", "MREcho")
                ),
            )
            for index, own in enumerate(header.PerFrameFunctionalGroupsSequence)
        ]
    except (AttributeError, TypeError, ValueError, IndexError):
        return []  # a report, a secondary capture, a damaged header


def lattice(frames: Sequence[Frame], shape: tuple[int, int]) -> tuple[Grid, list[Frame]]:
    """The even grid (columns, rows, slices) that the frames fill, sheared where the gantry was tilted, and the frames
    in its order.

    Args:
        frames: at least two.
        shape: columns and rows.

    Raises:
        GeometryError: several directions, several images at one place, uneven or missing slices.
    """
    normal = frames[0].normal
    across, down = frames[0].across, frames[0].down
    scale = np.linalg.norm(across)
    if any(max(np.abs(f.across - across).max(), np.abs(f.down - down).max()) > SAME_DIRECTION * scale for f in frames):
        raise GeometryError("slices in several directions", "Take a series of parallel slices.")
    places = np.array([f.origin for f in frames]) @ normal
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    step = float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 0.0
    if (gaps < OFF_PLACE * step).any() or step == 0:
        number = len(frames) / max(int((gaps >= OFF_PLACE * step).sum()) + 1, 1) if step else len(frames)
        cure = "Export one volume alone (one time point, one b-value), or convert it and give the NIfTI file."
        raise GeometryError(f"{number:g} images at one place", cure)
    if (np.abs(gaps - step) > OFF_PLACE * step).any():
        lost = int(np.maximum(np.rint(gaps / step) - 1, 0).sum())
        what = f"{lost} slice(s) missing" if lost else f"slices {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        raise GeometryError(what, "Export the whole series again, or give an evenly spaced NIfTI file.")
    ordered = [frames[k] for k in order]
    origins = np.array([f.origin for f in ordered])
    move = (origins[-1] - origins[0]) / (len(frames) - 1)
    if np.abs(origins - origins[0] - np.arange(len(frames))[:, None] * move).max() > OFF_PLACE * step:
        raise GeometryError("slices shifted against each other", "Take a series whose slices lie in one stack.")
    affine = np.eye(4)
    affine[:3] = np.stack([across, down, move, origins[0]], axis=1)
    return Grid((*shape, len(frames)), affine), ordered


def frame_grid(frame: Frame, shape: tuple[int, int], step: np.ndarray | None = None) -> Grid:
    """One frame as a grid (columns, rows, 1); ``step`` leads to the next slice (by default 1 mm along the normal)."""
    affine = np.eye(4)
    affine[:3] = np.stack([frame.across, frame.down, frame.normal if step is None else step, frame.origin], axis=1)
    return Grid((*shape, 1), affine)


def _frame(path: Path, index: int, measures: Any, orientation: Any, position: Any, echo: Any) -> Frame:
    height, width = (float(x) for x in measures.PixelSpacing)
    cosines = np.array([float(x) for x in orientation.ImageOrientationPatient]).reshape(2, 3) * LPS_TO_RAS
    origin = np.array([float(x) for x in position.ImagePositionPatient]) * LPS_TO_RAS
    frame = Frame(path, index, cosines[0] * width, cosines[1] * height, origin, _part(echo))
    if not (np.isfinite(frame.normal).all() and np.isfinite(origin).all() and min(width, height) > 0):
        raise ValueError("no plane")
    return frame


def _part(header: Any) -> tuple[str, ...]:
    time = header.get("EffectiveEchoTime", header.get("EchoTime")) if header is not None else None
    # The third value is the kind of image: M, P, W, F, IP, OP in MR; AXIAL or LOCALIZER in CT.
    kind = [str(k) for k in header.get("ImageType", [])[2:3]] if header is not None else []
    return ((f"TE {float(time):.3g}",) if time else ()) + tuple(k.upper() for k in kind)


def _group(own: Any, shared: Any, name: str) -> Any:
    sequence = own.get(f"{name}Sequence") or shared.get(f"{name}Sequence")
    return sequence[0] if sequence else None
