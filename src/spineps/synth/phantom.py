"""Ready-made scans with their truth, for tests, the demo and ``spineps phantom``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spineps.synth.image import ImageSpec, random_image_spec, synthesise
from spineps.synth.labelmap import Phantom, field_of_view, render
from spineps.synth.person import SpineSpec, View
from spineps.synth.spec import random_spec
from spineps.synth.tissues import Tissue
from spineps.volume import Volume

#: Usual field of view of each region, mm along (p, i, r), and the level in its middle.
FIELDS: dict[str, tuple[tuple[float, float, float], float]] = {
    "cervical": ((150.0, 200.0, 66.0), 4.5),
    "thoracic": ((160.0, 300.0, 72.0), 13.5),
    "lumbar": ((170.0, 280.0, 80.0), 22.0),
    "sacral": ((160.0, 180.0, 120.0), 26.5),
    "whole": ((200.0, 760.0, 84.0), 15.3),
}
#: Most noise of an MR, as a share of the mean of body and disc: three times the noisiest of 37 lumbar scans
#: (Immerkaer's estimate over the mean of the bodies: .004 to .035).  Training draws more.
MOST_NOISE = 0.1
#: Tissues of body and disc.
SPINE = (Tissue.MARROW_BODY, Tissue.NUCLEUS, Tissue.ANNULUS)


def make_phantom(
    seed: int,
    region: str = "lumbar",
    contrast: str = "T2",
    zoom: Sequence[float] = (0.9, 0.9, 3.3),
    shape: Sequence[int] | None = None,
    degrade: bool = True,
    orientation: str = "PIR",
    *,
    thoracic: int | None = None,
    lumbar: int | None = None,
    pathology: float = 1.0,
) -> tuple[Volume, Volume, Volume, SpineSpec, ImageSpec]:
    """A synthetic scan and its truth; the same arguments always give the same bytes.

    Args:
        seed: of everything.
        region: "cervical", "thoracic", "lumbar", "sacral" or "whole".
        contrast: "T2", "T1", "STIR", "CT", "Dixon", "random" or "any".
        zoom: voxel size in mm along (posterior, inferior, right); thick slices average what lies in them.
        shape: voxels along the same axes; None takes the region's usual field of view.
        degrade: False for a scan without noise, bias and artefacts.
        orientation: axis codes of the returned volumes.
        thoracic, lumbar: number of vertebrae, None draws them.
        pathology: factor on the frequency of disease.

    Returns:
        image (float32), semantic mask (uint8), instance mask (uint8), and the two specs they replay from.
    """
    if region not in FIELDS:
        raise ValueError(f"region {region!r} is none of {tuple(FIELDS)}")
    size, level = FIELDS[region]
    if shape is None:
        shape = tuple(round(length / step) for length, step in zip(size, zoom, strict=True))
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, region, thoracic=thoracic, lumbar=lumbar, pathology=pathology)
    view = View(
        level + float(rng.uniform(-0.3, 0.3)), (size[0] * 0.08, 0.0, float(rng.uniform(-4, 4))), spec.view.pitch / 3
    )
    spec = replace(spec, view=view)
    acquisition = random_image_spec(rng, contrast, degrade=float(degrade))
    # The grid itself is the acquisition: slices are made by averaging below, not by the image spec.
    acquisition = replace(acquisition, slice_axis=-1)
    if not acquisition.signed:
        most = MOST_NOISE * float(np.mean([acquisition.means[tissue] for tissue in SPINE]))
        acquisition = replace(acquisition, noise=min(acquisition.noise, most))
    if not degrade:
        acquisition = replace(acquisition, noise=0.0, gamma=1.0, levels=0, high=0.999, clip=1.2)
    image, truth = scan(spec, acquisition, shape, zoom)
    volumes = (truth.volume(image), truth.volume(truth.semantic), truth.volume(truth.instance))
    turned = tuple(v.reoriented(orientation) for v in volumes)
    return turned[0], turned[1], turned[2], spec, acquisition


def scan(
    spec: SpineSpec, acquisition: ImageSpec, shape: Sequence[int], zoom: Sequence[float]
) -> tuple[np.ndarray, Phantom]:
    """Image and truth of a person on a grid; axes thicker than 2 mm are rendered finer and averaged.

    Args:
        spec, acquisition: the person and the scan.
        shape, zoom: voxels and mm along (p, i, r).

    Returns:
        float32 image, and the phantom on its grid (labels at the middle of each slice).
    """
    parts = [max(round(step / 1.2), 1) if step > 2 else 1 for step in zoom]
    parts = [n if n % 2 else n + 1 for n in parts]
    fine = render(
        spec,
        field_of_view(
            [n * k for n, k in zip(shape, parts, strict=True)], [z / k for z, k in zip(zoom, parts, strict=True)]
        ),
    )
    image: np.ndarray = synthesise(fine, acquisition)
    middle = tuple(slice(k // 2, None, k) for k in parts)
    for axis, k in enumerate(parts):
        if k > 1:
            split = (*image.shape[:axis], image.shape[axis] // k, k, *image.shape[axis + 1 :])
            image = image.reshape(split).mean(axis=axis + 1)
    return image.astype(np.float32), Phantom(
        tissue=np.ascontiguousarray(fine.tissue[middle]),
        semantic=np.ascontiguousarray(fine.semantic[middle]),
        instance=np.ascontiguousarray(fine.instance[middle]),
        grid=field_of_view(shape, zoom),
        spec=spec,
    )
