"""Models by name: bundled ones answer unless the user has installed a published model of that name."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from spineps.errors import ModelError
from spineps.models.config import CONFIG_FILE, InferenceConfig, read_config
from spineps.models.enums import MR_MODALITIES, Modality, SpinepsPhase
from spineps.models.model import WEIGHTS_FILE, InstanceModel, LabelingModel, Model, SemanticModel, weight_files
from spineps.models.published import PublishedSemanticModel
from spineps.models.releases import RELEASES, Release

logger = logging.getLogger(__name__)

#: Folder of the user's own models (the published system's variable).
MODELS_VARIABLE = "SPINEPS_SEGMENTOR_MODELS"
BUNDLED = Path(__file__).parent / "bundled"

_CLASSES: dict[SpinepsPhase, type[Model]] = {
    SpinepsPhase.SEMANTIC: SemanticModel,
    SpinepsPhase.INSTANCE: InstanceModel,
    SpinepsPhase.LABELING: LabelingModel,
}
M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Alias:
    """A documented name: the release of that name answers to it when it is installed, else the bundled model."""

    name: str
    phase: SpinepsPhase
    modalities: tuple[Modality, ...] | None = None

    @property
    def bundled(self) -> Path:
        """Folder of the bundled model."""
        return BUNDLED / self.phase.name.lower()

    @property
    def release(self) -> Release | None:
        """The published model of the same name."""
        return next((known for known in RELEASES if known.name == self.name), None)


ALIASES: tuple[Alias, ...] = (
    Alias("semantic", SpinepsPhase.SEMANTIC),
    Alias("t2w", SpinepsPhase.SEMANTIC, MR_MODALITIES),
    Alias("t1w", SpinepsPhase.SEMANTIC, MR_MODALITIES),
    Alias("vibe", SpinepsPhase.SEMANTIC, MR_MODALITIES),
    Alias("ct", SpinepsPhase.SEMANTIC, (Modality.CT,)),
    Alias("instance", SpinepsPhase.INSTANCE),
    Alias("ct_instance", SpinepsPhase.INSTANCE),
    Alias("labeling", SpinepsPhase.LABELING),
    Alias("t2w_labeling", SpinepsPhase.LABELING),
    Alias("ct_labeling", SpinepsPhase.LABELING),
)


class UnknownModelError(ModelError, KeyError):
    """No model has this name.  Also a KeyError, as in the published system."""


@dataclass(frozen=True)
class ModelEntry:
    """One line of ``spineps models list``.

    Attributes:
        name: id to ask for.
        phase: what it is for.
        origin: ``"bundled"`` or ``"installed"``.
        folder: where it lies.
        runnable: its weights are there; :func:`get_actual_model` tells what is wrong otherwise.
        config: its contract.
    """

    name: str
    phase: SpinepsPhase
    origin: str
    folder: Path
    runnable: bool
    config: InferenceConfig


def get_semantic_model(name: str | Path = "t2w", *, use_cpu: bool = False, **how: object) -> SemanticModel:
    """The semantic model called ``name`` (``t2w``, ``t1w``, ``vibe``, ``ct``, ``semantic``, an installed id or a path).

    Args:
        name: id or folder.
        use_cpu: never use a GPU.
        **how: ``engine``, ``device``, ``threads``, ``precision`` of :func:`spineps.inference.engine.load_network`.

    Raises:
        UnknownModelError: no such model (also a KeyError).
        ModelError: the model cannot be used.
    """
    return _get(name, SpinepsPhase.SEMANTIC, SemanticModel, use_cpu, how)


def get_instance_model(name: str | Path = "instance", *, use_cpu: bool = False, **how: object) -> InstanceModel:
    """The instance model called ``name`` (``instance``, ``ct_instance``, an installed id or a path)."""
    return _get(name, SpinepsPhase.INSTANCE, InstanceModel, use_cpu, how)


def get_labeling_model(name: str | Path = "t2w_labeling", *, use_cpu: bool = False, **how: object) -> LabelingModel:
    """The labelling model called ``name`` (``labeling``, ``t2w_labeling``, ``ct_labeling``, an id or a path)."""
    return _get(name, SpinepsPhase.LABELING, LabelingModel, use_cpu, how)


def get_actual_model(folder: str | Path, *, use_cpu: bool = False, **how: object) -> Model:
    """The model in a folder or in the only model folder below it, whatever its phase.

    The path of its ``inference_config.json`` does as well.

    Raises:
        ModelError: no model or several models there, or files are missing or damaged.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / CONFIG_FILE).is_file():
        found = _configs(folder)
        if len(found) > 1:
            inner = ", ".join(str(file.parent.relative_to(folder)) for file in found)
            raise ModelError(f"{folder} holds several models: {inner}.", "Give the folder of one of them.")
        folder = found[0].parent if found else folder
    entry = _entry(folder, "installed")
    return _build(entry.name, entry, None, use_cpu, how)


def models_folder() -> Path:
    """Where the user's own models lie; it need not exist unless the environment names it.

    Raises:
        ModelError: the environment names a folder that does not exist.
    """
    if value := os.environ.get(MODELS_VARIABLE):
        if not Path(value).is_dir():
            raise ModelError(f"{MODELS_VARIABLE} names {value}, which is not a folder.", "Create it or unset it.")
        return Path(value)
    return user_folder("Library/Application Support", "XDG_DATA_HOME", ".local/share") / "models"


def user_folder(mac: str, variable: str, other: str) -> Path:
    """The package's folder below the user's, on Windows, on macOS (``mac``) and elsewhere (``variable``, ``other``)."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "spineps"
    return (home / mac if sys.platform == "darwin" else Path(os.environ.get(variable) or home / other)) / "spineps"


def available_models() -> list[ModelEntry]:
    """Every model that can be asked for: the documented names, then what the user has installed."""
    installed = _installed()
    entries = []
    for alias in ALIASES:
        if entry := _published(alias, installed):
            entries.append(replace(entry, name=alias.name))
        else:
            entries.append(replace(_entry(alias.bundled, "bundled"), name=alias.name))
    return entries + installed


def _get(name: str | Path, phase: SpinepsPhase, kind: type[M], use_cpu: bool, how: dict[str, object]) -> M:
    if isinstance(name, Path) or "/" in name or "\\" in name:
        model = get_actual_model(name, use_cpu=use_cpu, **how)
    else:
        try:
            model = _by_name(name.lower(), phase, use_cpu, how)
        except UnknownModelError:
            if not (Path(name) / CONFIG_FILE).is_file():
                raise
            model = get_actual_model(name, use_cpu=use_cpu, **how)
    if not isinstance(model, kind):
        raise ModelError(f"{name} is a {model.phase.name.lower()} model, not {phase.name.lower()}.", "Choose another.")
    return model


def _by_name(name: str, phase: SpinepsPhase, use_cpu: bool, how: dict[str, object]) -> Model:
    installed = [entry for entry in _installed() if entry.phase == phase]
    for alias in ALIASES:
        if alias.name != name or alias.phase != phase:
            continue
        entry = _published(alias, installed)
        if entry is None:
            entry = _entry(alias.bundled, "bundled")
            if alias.release:
                _tell_how_to_install(name)
        return _build(name, entry, alias, use_cpu, how)
    for entry in installed:
        if entry.name == name:
            return _build(name, entry, None, use_cpu, how)
    ids = [a.name for a in ALIASES if a.phase == phase] + [entry.name for entry in installed]
    raise UnknownModelError(f"There is no {phase.name.lower()} model {name!r}.", f"Choose one of: {', '.join(ids)}.")


def _build(name: str, entry: ModelEntry, alias: Alias | None, use_cpu: bool, how: dict[str, object]) -> Model:
    if not entry.runnable:
        weight_files(entry.folder, entry.config)  # Tells what is wrong.
    config = entry.config
    if alias is not None and alias.modalities is not None and entry.origin == "bundled":
        config = replace(config, modalities=alias.modalities)
    logger.info("%s model %r: %s (%s)", entry.phase.name.lower(), name, config.log_name, entry.origin)
    if use_cpu:
        how = {"device": "cpu", **how}
    kind = _CLASSES[entry.phase]
    if kind is SemanticModel and config.published and not (entry.folder / WEIGHTS_FILE).is_file():
        kind = PublishedSemanticModel
    return kind(name, config, entry.folder, entry.origin, **how)  # type: ignore[arg-type]


@cache
def _tell_how_to_install(name: str) -> None:
    """Once per name and process."""
    logger.info("The bundled model answers to %r. For the published weights: spineps models install %s", name, name)


def _published(alias: Alias, installed: list[ModelEntry]) -> ModelEntry | None:
    wanted = alias.release.names if alias.release else (alias.name,)
    return next((e for e in installed if e.name in wanted and e.phase == alias.phase), None)


def _installed() -> list[ModelEntry]:
    folder = models_folder()
    if not folder.is_dir():
        return []
    # Hidden folders hold what is being installed at this moment.
    files = [f for f in _configs(folder) if not f.relative_to(folder).parts[0].startswith(".")]
    entries = [_entry_or_none(file.parent) for file in files]
    return [entry for entry in entries if entry is not None]


def _configs(folder: Path) -> list[Path]:
    """The configs of all models below a folder; a locator belongs to the model around it."""
    found = sorted(folder.rglob(CONFIG_FILE))
    return [file for file in found if not (file.parents[1] / CONFIG_FILE).is_file()]


def _entry_or_none(folder: Path) -> ModelEntry | None:
    try:
        return _entry(folder, "installed")
    except ModelError as error:
        logger.warning("Model skipped: %s", error)
        return None


def _entry(folder: Path, origin: str) -> ModelEntry:
    config = read_config(folder)
    # nnU-Net folders are called after their plans; the model's own name is one level up.
    named = folder.parent if "nnUNetPlans" in folder.name else folder
    try:
        weight_files(folder, config)
        runnable = True
    except ModelError as error:
        logger.debug("%s cannot be run: %s", folder, error)
        runnable = False
    return ModelEntry(named.name.lower(), config.phase, origin, folder, runnable, config)
