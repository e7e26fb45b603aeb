"""Tiny models and archives for the installer's tests."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

CONFIG = {
    "log_name": "tiny",
    "modality": ["T2w"],
    "acquisition": "sag",
    "modeltype": "unet",
    "model_expected_orientation": ["P", "I", "R"],
    "available_folds": 1,
    "inference_augmentation": False,
    "resolution_range": [1, 1, 3],
    "default_step_size": 0.5,
    "labels": {"1": "26"},
}
KINDS: dict[str, dict[str, object]] = {
    "semantic": {},
    "instance": {"modality": "SEG"},
    "labeling": {"modeltype": "classifier"},
}


def model_files(kind: str = "semantic", weights: bytes = b"weights") -> dict[str, bytes]:
    """The files of a model; the weights are never loaded."""
    return {
        "inference_config.json": json.dumps(CONFIG | KINDS[kind]).encode(),
        "fold_0/checkpoint_final.pth": weights,
    }


def write_model(folder: Path, kind: str = "semantic", weights: bytes = b"weights") -> Path:
    for name, content in model_files(kind, weights).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def zipped(files: dict[str, bytes], prefix: str = "", compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of ``files``, every name behind ``prefix``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(prefix + name), content, compression)
    return stream.getvalue()
