"""May this model look at this scan?  Names and voxel sizes decide, as in the published system 2.1.3."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spineps.errors import CompatibilityError
from spineps.models.enums import MR_MODALITIES, Acquisition, Modality, SpinepsPhase
from spineps.models.scaling import HOUNSFIELD_WINDOW
from spineps.outputs.paths import Scan
from spineps.volume import Volume

if TYPE_CHECKING:
    from spineps.models.model import Model

logger = logging.getLogger(__name__)

_PLANE_OF = {"L": Acquisition.sag, "R": Acquisition.sag, "A": Acquisition.cor, "P": Acquisition.cor}
IGNORE = (
    "If the model should see it nevertheless, give --ignore-inference-compatibility (ignore_compatibility_issues=True)."
)


def modalities_of(form: str) -> list[Modality]:
    """What a format such as ``T2w`` at the end of a name can mean.

    >>> modalities_of("ct"), modalities_of("myscan")
    ([Modality.CT], [])
    """
    return [m for m in Modality if form in m.format_keys]


def is_ct(scan: Scan, volume: Volume | None = None) -> bool:
    """CT or not, by the name, else by the grey values (no MR image is as negative as air in a CT)."""
    named = modalities_of(scan.format)
    if named:
        return Modality.CT in named
    return volume is not None and float(volume.array.min()) < HOUNSFIELD_WINDOW[0]


def slice_plane(zoom: Sequence[float], axcodes: str) -> Acquisition:
    """Plane of the slices, from the voxel sizes alone (sizes below 1 mm count as 1).

    >>> slice_plane((0.8, 0.8, 3.0), "PIR"), slice_plane((1, 1, 1), "RAS"), slice_plane((1, 1, 4), "RAS")
    (Acquisition.sag, Acquisition.iso, Acquisition.ax)
    """
    sizes = [round(max(z, 1.0), 1) for z in zoom]
    thick = [axis for axis, size in enumerate(sizes) if size == max(sizes)]
    if len(thick) == 3:
        return Acquisition.iso
    odd = thick[0] if len(thick) == 1 else ({0, 1, 2} - set(thick)).pop()
    return _PLANE_OF.get(axcodes[odd], Acquisition.ax)


def check_input(model: Model, scan: Scan, volume: Volume) -> None:
    """Refuse a scan that the model was not made for.

    Raises:
        CompatibilityError: says what does not fit.
    """
    modalities, config = model.modalities, model.config
    named = modalities_of(scan.format)
    planes = (*config.acquisitions, Acquisition.iso)
    plane = slice_plane(volume.zoom, volume.axcodes)
    if named and not set(named) & set(modalities):
        raise _refusal(scan, f"is {_names(named)}, but model {model.name!r} was made for {_names(modalities)}")
    if not named:
        logger.info("%s: the name does not tell the modality.", scan.path.name)
    if "seg" in scan.entities and Modality.SEG not in modalities:
        raise _refusal(scan, "is a segmentation (its name has a seg- key), not a scan")
    if "label" in scan.entities:
        raise _refusal(scan, "has a label- key in its name, so it is taken for a mask")
    if "debug" in scan.path.name or "debug" in scan.path.parent.name:
        raise _refusal(scan, "is debug data")
    acq = scan.entities.get("acq")
    if acq is not None and not any(acq in p.format_keys for p in planes):
        raise _refusal(scan, f"has acq-{acq} in its name, but model {model.name!r} was made for {_names(planes)}")
    if plane not in planes:
        raise _refusal(scan, f"has {plane.name} slices, but model {model.name!r} was made for {_names(planes)}")


def check_models(semantic: Model, instance: Model, labeling: Model | None) -> None:
    """Refuse models that cannot work together: each must serve its own phase and understand the one before.

    Raises:
        CompatibilityError: says which does not fit.
    """
    wanted = {SpinepsPhase.SEMANTIC: semantic, SpinepsPhase.INSTANCE: instance, SpinepsPhase.LABELING: labeling}
    for phase, model in wanted.items():
        if model is not None and model.phase != phase:
            raise CompatibilityError(
                f"Model {model.name!r} serves the {model.phase.name} phase, not the {phase.name} phase.",
                f"Choose another: `spineps models list` shows all ({phase.name.lower()}).",
            )
    if not {i for i, target in instance.config.mapping.items() if target} & set(semantic.config.class_ids):
        raise CompatibilityError(
            f"Instance model {instance.name!r} knows none of the structures that {semantic.name!r} finds.",
            "Choose models that belong together.",
        )


def needs_hounsfield(model: Model, scan: Scan, volume: Volume) -> bool:
    """Grey values must stay as they are: a CT model, or a model for any contrast that is shown a CT."""
    if Modality.CT not in model.modalities:
        return False
    return not set(model.modalities) & set(MR_MODALITIES) or is_ct(scan, volume)


def _refusal(scan: Scan, why: str) -> CompatibilityError:
    return CompatibilityError(f"{scan.path.name} {why}.", f"Choose another model or scan. {IGNORE}")


def _names(members: Sequence[Modality] | Sequence[Acquisition]) -> str:
    return ", ".join(dict.fromkeys(m.name for m in members))
