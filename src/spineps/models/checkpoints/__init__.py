"""Published checkpoints as plain arrays: nnU-Net v2, the Lightning 3-D U-Net, the VERIDAH DenseNet.  No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from spineps.inference.network import Spec
    from spineps.models.config import InferenceConfig


def read_published(
    folder: Path, config: InferenceConfig, fold: str | int | None = None
) -> tuple[Spec, dict[str, np.ndarray]]:
    """Description and float32 parameters of a published model's network (``fold``: nnU-Nets only).

    Raises:
        ModelError: files are missing, damaged, or hold a network that is not supported.
    """
    from spineps.models.enums import ModelType

    if config.modeltype is ModelType.nnunet:
        from spineps.models.checkpoints.nnunet import read_nnunet

        return read_nnunet(folder, config, fold)
    if config.modeltype is ModelType.unet:
        from spineps.models.checkpoints.unet import read_unet

        return read_unet(folder)
    from spineps.models.checkpoints.densenet import read_densenet

    return read_densenet(folder)


def sources(folder: Path, config: InferenceConfig, fold: str | int | None = None) -> list[Path]:
    """Files beside ``inference_config.json`` that decide the answers (``fold`` None: of all folds of the config).

    Raises:
        ModelError: one is missing.
    """
    from spineps.models.checkpoints import densenet, nnunet, unet
    from spineps.models.enums import ModelType

    if config.modeltype is ModelType.nnunet:
        folds = config.folds if fold is None else (fold,)
        settings = [folder / nnunet.PLANS, folder / nnunet.DATASET]
        return [*settings, *(nnunet.checkpoint_of(folder, config, k) for k in folds)]
    return [(unet if config.modeltype is ModelType.unet else densenet).checkpoint_of(folder)]
