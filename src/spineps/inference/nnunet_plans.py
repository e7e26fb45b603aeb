"""What an nnU-Net v2 folder says about its inputs, and its pre-processing (``plans.json``, ``dataset.json``).

Facts after nnU-Net v2 (Isensee et al., Nat Methods 2021) and its use in SPINEPS 2.1.3.  Grey values are rounded to
float16 before and after, as there, because that decides voxels (recorded masks: 99.89 % the same without, 99.92 % with
it); what would overflow is clipped.  nnU-Net's axes are those of the image reversed, then ``transpose_forward``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import ModelError
from spineps.models.checkpoints.nnunet import inherited, output_channels, settings

#: Ratio of largest to smallest voxel size from which slices are resampled one by one (nnU-Net).
ANISOTROPY = 3.0
#: The only resampling that is known here; folders may name others.
RESAMPLER = "resample_data_or_seg_to_shape"
LARGEST = 65504.0  # of float16
SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "NoNormalization",
)

Box = tuple[slice, slice, slice]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Resampling:
    """How an array is brought to another shape: spline orders within and across slices, told apart or not."""

    function: str = RESAMPLER
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = None


@dataclass(frozen=True)
class Plans:
    """One configuration of a folder.

    Attributes:
        patch: tile in voxels, nnU-Net axes.
        spacing: voxel size in mm that the network was trained with, nnU-Net axes.
        transpose: nnU-Net axis -> axis of the reversed image.
        schemes: normalisation of each channel.
        masked: whether a channel is normalised over its non-zero region only.
        intensities: per channel, statistics of the training set's foreground (for CT).
        image: resampling of images.
        logits: resampling of answers.
        heads: output channels of the network.
        regions: class that each output channel paints, in order; () when channels exclude each other.
    """

    patch: Shape
    spacing: tuple[float, float, float]
    transpose: Shape
    schemes: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: Mapping[str, Mapping[str, float]]
    image: Resampling
    logits: Resampling
    heads: int
    regions: tuple[int, ...] = ()

    @property
    def axes(self) -> Shape:
        """nnU-Net axis -> axis of the image."""
        a, b, c = (2 - axis for axis in self.transpose)
        return a, b, c


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the network sees it.

    Attributes:
        data: (C, a, b, c) float16, finite, nnU-Net axes, cropped, normalised, in the plans' voxel size.
        box: where the crop lies in the whole image, nnU-Net axes.
        shape: the whole image, nnU-Net axes.
        zoom: its voxel size in mm, nnU-Net axes.
    """

    data: np.ndarray
    box: Box
    shape: Shape
    zoom: tuple[float, float, float]

    @property
    def inner(self) -> Shape:
        """Shape of the crop before resampling."""
        a, b, c = (s.stop - s.start for s in self.box)
        return a, b, c


def read_plans(folder: Path, configuration: str = "") -> Plans:
    """The configuration ``configuration`` (default ``3d_fullres``) of an nnU-Net folder.

    Raises:
        ModelError: a file is missing or damaged, or the folder needs something that is not supported.
    """
    plans, dataset = settings(folder)
    try:
        return parse_plans(plans, dataset, configuration or "3d_fullres")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"The nnU-Net plans in {folder} cannot be used: {error!r}", "Install the model again."
        ) from error


def parse_plans(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str) -> Plans:
    """Plans from decoded JSON; ValueError and KeyError name what is wrong."""
    own = inherited(plans["configurations"], name)
    schemes = tuple(own["normalization_schemes"])
    if unknown := sorted(set(schemes) - set(SCHEMES)):
        raise ValueError(f"unknown normalisation {', '.join(unknown)}")
    if len(own["patch_size"]) != 3 or len(own["spacing"]) != 3:
        raise ValueError(f"configuration {name} is not 3-D")
    regions = tuple(int(c) for c in dataset.get("regions_class_order") or ())
    has_regions = any(isinstance(v, (list, tuple)) and len(v) > 1 for v in dataset["labels"].values())
    if has_regions and not regions:
        raise ValueError("labels are regions but regions_class_order is missing")
    return Plans(
        patch=_shape(own["patch_size"]),
        spacing=_triple(own["spacing"]),
        transpose=_shape(plans.get("transpose_forward", (0, 1, 2))),
        schemes=schemes,
        masked=tuple(bool(v) for v in own.get("use_mask_for_norm") or [False] * len(schemes)),
        intensities=plans.get("foreground_intensity_properties_per_channel")
        or plans.get("foreground_intensity_properties_by_modality")
        or {},
        image=_resampling(own, "data", 3),
        logits=_resampling(own, "probabilities", 1),
        heads=output_channels(dataset),
        regions=regions if has_regions else (),
    )


def prepare(image: np.ndarray, zoom: Sequence[float], plans: Plans) -> Prepared:
    """Transpose, crop to what is not zero, normalise, resample.

    Args:
        image: (C, X, Y, Z), any dtype; one channel per normalisation scheme.
        zoom: voxel size in mm along X, Y, Z.
        plans: what the network wants.

    Raises:
        ModelError: wrong number of channels.
    """
    if len(image) != len(plans.schemes):
        raise ModelError(
            f"The model wants {len(plans.schemes)} images (channels) and got {len(image)}.",
            "Give one image per channel, in the order of the model's expected_inputs.",
        )
    view = image.transpose(0, *(a + 1 for a in plans.axes))
    a, b, c = plans.axes
    sizes = (float(zoom[a]), float(zoom[b]), float(zoom[c]))
    box = _nonzero_box(view)
    data = _as_half(view[(slice(None), *box)]).astype(np.float32, order="C")
    inside = _filled(data) if any(plans.masked) else None
    for channel, (array, scheme, masked) in enumerate(zip(data, plans.schemes, plans.masked, strict=True)):
        normalise(array, scheme, inside if masked else None, plans.intensities.get(str(channel), {}))
    target = _shape([round(n * z / s) for n, z, s in zip(data.shape[1:], sizes, plans.spacing, strict=True)])
    if target != data.shape[1:]:
        data = np.stack([resampled(x, target, sizes, plans.spacing, plans.image) for x in data])
    data = _as_half(data)
    return Prepared(data, box, _shape(view.shape[1:]), sizes)


def normalise(x: np.ndarray, scheme: str, mask: np.ndarray | None, statistics: Mapping[str, float]) -> None:
    """Normalise one channel in place.

    Args:
        x: (a, b, c) float32.
        scheme: one of :data:`SCHEMES`.
        mask: Z scores only: voxels that count and change; None for all.
        statistics: CT only: ``mean``, ``std``, ``percentile_00_5``, ``percentile_99_5`` of the training set.
    """
    least = np.float32(1e-8)
    if scheme == "ZScoreNormalization":
        seen = x if mask is None else x[mask]
        mean, std = (seen.mean(), seen.std()) if seen.size else (np.float32(0), np.float32(1))
        where: Any = True if mask is None else mask
        np.subtract(x, mean, out=x, where=where)
        np.divide(x, max(std, least), out=x, where=where)
    elif scheme == "CTNormalization":
        np.clip(x, statistics["percentile_00_5"], statistics["percentile_99_5"], out=x)
        x -= np.float32(statistics["mean"])
        x /= max(np.float32(statistics["std"]), least)
    elif scheme == "RescaleTo01Normalization":
        x -= x.min()
        x /= max(x.max(), least)
    elif scheme == "RGBTo01Normalization":
        x /= np.float32(255)


def resampled(
    x: np.ndarray, shape: Shape, zoom: Sequence[float], new_zoom: Sequence[float], how: Resampling
) -> np.ndarray:
    """One channel in another shape: corners of the volume stay where they are, values stay in their range.

    Args:
        x: (a, b, c).
        shape: wanted.
        zoom: voxel size of ``x`` in mm.
        new_zoom: nominal voxel size of the answer.
        how: orders; slices are resampled one by one where voxels are much longer along one axis.

    Raises:
        ModelError: the folder names a resampling that is not known here.
    """
    if shape == x.shape:
        return x
    if how.function != RESAMPLER:
        raise ModelError(
            f"The model resamples with {how.function}, which is not supported.",
            f"Give an image with voxels of {', '.join(f'{z:g}' for z in new_zoom)} mm.",
        )
    axis = _slice_axis(zoom, new_zoom, how.force_separate_z)
    if axis is None:
        return _zoomed(x, shape, how.order)
    within = tuple(n if i == axis else m for i, (n, m) in enumerate(zip(x.shape, shape, strict=True)))
    if within != x.shape:
        slices = [_zoomed(s, within[:axis] + within[axis + 1 :], how.order) for s in np.moveaxis(x, axis, 0)]
        x = np.stack(slices, axis)
    return _zoomed(x, shape, how.order_z)


def _zoomed(x: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    from scipy.ndimage import affine_transform

    if x.shape == tuple(shape):
        return x
    ratio = np.array(x.shape) / np.array(shape)
    out = affine_transform(x, ratio, 0.5 * ratio - 0.5, tuple(shape), np.float32, order, mode="nearest")
    return np.clip(out, x.min(), x.max(), out=out) if order > 1 else out


def _slice_axis(zoom: Sequence[float], new_zoom: Sequence[float], force: bool | None) -> int | None:
    """The one axis along which voxels are longest, when slices are to be resampled one by one."""
    if force is False:
        return None
    for sizes in (zoom, new_zoom):
        if force or max(sizes) / min(sizes) > ANISOTROPY:
            longest = [axis for axis in range(3) if sizes[axis] == max(sizes)]
            return longest[0] if len(longest) == 1 else None
    return None


def _nonzero_box(view: np.ndarray) -> Box:
    from spineps.volume import bounding_box

    found = np.zeros(view.shape[1:], bool)
    for channel in view:
        found |= channel != 0
    _, a, b, c = view.shape
    return bounding_box(found) or (slice(0, a), slice(0, b), slice(0, c))


def _as_half(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LARGEST, LARGEST).astype(np.float16)


def _filled(data: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes((data != 0).any(axis=0)))


def _resampling(own: Mapping[str, Any], what: str, order: int) -> Resampling:
    given = own.get(f"resampling_fn_{what}_kwargs") or {}
    return Resampling(
        str(own.get(f"resampling_fn_{what}", RESAMPLER)),
        int(given.get("order", order)),
        int(given.get("order_z", 0)),
        given.get("force_separate_z"),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _shape(values: Sequence[int]) -> Shape:
    return int(values[0]), int(values[1]), int(values[2])
