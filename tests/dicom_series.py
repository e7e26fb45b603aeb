"""Tiny DICOM series, written with pydicom alone, so that the package is tested against something else than itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAME = "Mustermann^Erika"


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    modality: str = "MR",
    number: int = 3,
    description: str = "t2_tse_sag",
    study: str = "1.2.826.0.1.3680043.8.498.1",
    slope: tuple[float, float] = (1.0, 0.0),
    order: Any = None,
    enhanced: bool = False,
    syntax: str = "1.2.840.10008.1.2.1",
    **more: Any,
) -> str:
    """Slices along the last axis of ``array`` (columns, rows, slices) as files of ``folder``; returns the series' UID.

    Args:
        affine: voxel to RAS mm; axes 0 and 1 at right angles, axis 2 as it likes (gantry tilt).
        order: in which instance numbers run over the slices.
        slope: rescale slope and intercept; stored = (value - intercept) / slope.
        more: attributes of every file.
    """
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[study, str(number), description, str(folder), str(more.get("EchoTime"))])
    stored = np.rint((array - slope[1]) / slope[0]).astype(np.int16)
    order = list(range(array.shape[2])) if order is None else list(order)
    head = {
        "Modality": modality,
        "PatientName": NAME,
        "PatientID": "4711",
        "PatientBirthDate": "19700101",
        "PatientSex": "F",
        "PatientPosition": "HFS",
        "StudyInstanceUID": study,
        "StudyDate": "20240101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "",
        "Manufacturer": "SIEMENS",
        "SeriesInstanceUID": uid,
        "SeriesNumber": number,
        "SeriesDescription": description,
        "FrameOfReferenceUID": study + ".7",
        "Rows": array.shape[1],
        "Columns": array.shape[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"],
    }
    if modality == "MR":
        head |= {"ScanningSequence": "SE", "SequenceVariant": "SK", "MRAcquisitionType": "2D", "EchoTime": 98.0,
                 "RepetitionTime": 3500.0, "MagneticFieldStrength": 1.5, "EchoNumbers": 1}  # fmt: skip
    head |= more
    frames = np.stack([stored[:, :, k].T for k in order])
    if enhanced:
        _save(
            folder / "enhanced.dcm", {**head, **_groups(affine, order, slope)}, f"enhanced {modality}", frames, syntax
        )
        return uid
    for instance, k in enumerate(order, 1):
        each = {"InstanceNumber": instance, "SliceThickness": 1.0, **_plane(affine, k)}
        each |= {"RescaleSlope": slope[0], "RescaleIntercept": slope[1]} if modality == "CT" else {}
        _save(folder / f"IM{instance:04d}_{number}", {**head, **each}, modality, frames[instance - 1], syntax)
    return uid


def _plane(affine: np.ndarray, k: int) -> dict[str, Any]:
    lps = LPS @ affine
    across, down = lps[:3, 0], lps[:3, 1]
    width, height = np.linalg.norm(across), np.linalg.norm(down)
    return {
        "ImageOrientationPatient": [float(f"{x:.10g}") for x in (*(across / width), *(down / height))],
        "PixelSpacing": [float(f"{height:.10g}"), float(f"{width:.10g}")],
        "ImagePositionPatient": [float(f"{x:.10g}") for x in (lps @ [0, 0, k, 1])[:3]],
    }


def _groups(affine: np.ndarray, order: list[int], slope: tuple[float, float]) -> dict[str, Any]:
    def item(**values: Any) -> Any:
        from pydicom.dataset import Dataset

        made = Dataset()
        for key, value in values.items():
            setattr(made, key, value)
        return made

    plane = _plane(affine, 0)
    spacing = float(np.linalg.norm(affine[:3, 2]))
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=plane["PixelSpacing"], SliceThickness=spacing)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=plane["ImageOrientationPatient"])],
        PixelValueTransformationSequence=[item(RescaleSlope=slope[0], RescaleIntercept=slope[1], RescaleType="US")],
    )
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=_plane(affine, k)["ImagePositionPatient"])],
            FrameContentSequence=[item(StackID="1", InStackPositionNumber=i, DimensionIndexValues=[1, i])],
        )
        for i, k in enumerate(order, 1)
    ]
    return {
        "NumberOfFrames": len(order),
        "InstanceNumber": 1,
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }


def _save(path: Path, head: dict[str, Any], sop_class: str, pixels: np.ndarray, syntax: str) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import generate_uid

    made = Dataset()
    for key, value in head.items():
        setattr(made, key, value)
    made.SOPClassUID = SOP_CLASSES[sop_class]
    made.SOPInstanceUID = generate_uid(entropy_srcs=[head["SeriesInstanceUID"], str(head["InstanceNumber"])])
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.PixelData = np.ascontiguousarray(pixels).tobytes()
    if syntax != "1.2.840.10008.1.2.1":
        made.compress(syntax)
    made.save_as(path, enforce_file_format=True)
