"""Points of interest as the POI JSON of TPTBox (``TPTBox.POI.load`` reads it; the format is TPTBox 1.1.0's "POI")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spineps.anatomy import instance_name
from spineps.volume import Grid

if TYPE_CHECKING:
    from spineps.phases.points import Point

SOURCE = "MRI Segmentation Pipeline"
DECIMALS = 3


def poi_document(points: Iterable[Point], grid: Grid, header: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The content of a ``_ctd.json`` file.

    Args:
        points: in RAS mm.
        grid: the input's grid; coordinates become its voxel indices (0-based, continuous).  They go through the full
            affine, so they are right on sheared grids too.
        header: further entries (version, models, options).

    Returns:
        ``[header, {vertebra id: {subregion id: [i, j, k]}}]``.  The header holds the grid, ``label_name`` (names as
        TPTBox shows them) and ``confidence`` (0..1, keyed ``"vertebra,subregion"``).
    """
    coordinates: dict[str, dict[str, list[float]]] = {}
    names: dict[str, dict[str, str]] = {}
    confidence: dict[str, float] = {}
    for point in sorted(points, key=lambda p: (p.vertebra, p.subregion)):
        index = grid.to_index(np.asarray(point.world))
        one, two = str(point.vertebra), str(point.subregion)
        coordinates.setdefault(one, {})[two] = [round(float(v), DECIMALS) for v in index]
        names.setdefault(one, {"name": instance_name(point.vertebra)})[two] = point.name
        confidence[f"{one},{two}"] = round(float(point.confidence), DECIMALS)
    return [
        {**grid_header(grid), "source": SOURCE, **(header or {}), "label_name": names, "confidence": confidence},
        coordinates,
    ]


def grid_header(grid: Grid) -> dict[str, Any]:
    """The grid in the words of a POI header; ``rotation`` times ``zoom`` is the affine's 3 x 3 part, shear included."""
    return {
        "direction": list(grid.axcodes),
        "zoom": [round(z, 7) for z in grid.zoom],
        "origin": grid.affine[:3, 3].tolist(),
        "rotation": (grid.affine[:3, :3] / np.array(grid.zoom)).tolist(),
        "shape": list(grid.shape),
        "format": "POI",
        "level_one_info": "Any",
        "level_two_info": "Any",
    }


def poi_object(document: list[dict[str, Any]]) -> Any:
    """The same document as a ``TPTBox.POI``."""
    from TPTBox import POI

    header, coordinates = document
    known = {"direction", "zoom", "origin", "rotation", "shape", "format", "level_one_info", "level_two_info"}
    centroids = {(int(one), int(two)): tuple(xyz) for one, row in coordinates.items() for two, xyz in row.items()}
    return POI(
        centroids,
        orientation=tuple(header["direction"]),
        zoom=tuple(header["zoom"]),
        shape=tuple(header["shape"]),
        origin=tuple(header["origin"]),
        rotation=np.array(header["rotation"]),
        info={key: value for key, value in header.items() if key not in known},
    )
