"""Sample pictures of a training run, as PNG, without a plotting library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from spineps.anatomy import BY_ID, CLASS_IDS


def palette() -> np.ndarray:
    """(K, 3) uint8 colour of every network class, background black."""
    colours = [(0, 0, 0)]
    for i in CLASS_IDS[1:]:
        text = BY_ID[i].color
        colours.append((int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)))
    return np.array(colours, np.uint8)


def overlay(image: Tensor, labels: Tensor) -> np.ndarray:
    """Middle sagittal slice of a patch (x, y, z) beside its class indices: (I, 2 P, 3) uint8, anterior on the left."""
    middle = image.shape[2] // 2
    grey = image[:, :, middle].float().cpu().numpy().T
    low, high = np.percentile(grey, (1, 99))
    grey = np.clip(255 * (grey - low) / max(high - low, 1e-6), 0, 255)[..., None].repeat(3, -1)
    classes = labels[:, :, middle].cpu().numpy().T
    drawn = np.where(classes[..., None] > 0, 0.45 * grey + 0.55 * palette()[classes], grey)
    return np.concatenate([grey, drawn], axis=1).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray) -> None:
    """An (H, W, 3) uint8 picture as PNG."""
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(picture))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
