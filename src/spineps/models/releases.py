"""The published models: ids, addresses and folders, as in the registry of SPINEPS 2.1.3."""

from __future__ import annotations

from dataclasses import dataclass

from spineps.models.enums import SpinepsPhase

BASE = "https://github.com/Hendrik-code/spineps/releases/download/"


@dataclass(frozen=True)
class Release:
    """A published model.

    Attributes:
        name: id.
        archive: its address below :data:`BASE`.
        folder: its folder in the models folder, as the published installer calls it.
        phase: what it is for.
        sha256: of the archive, where it is known beforehand; else the first download decides.
    """

    name: str
    archive: str
    folder: str
    phase: SpinepsPhase
    sha256: str | None = None

    @property
    def address(self) -> str:
        """Where it is downloaded."""
        return BASE + self.archive

    @property
    def names(self) -> tuple[str, str, str]:
        """What it and its folder may be called, in lower case."""
        return self.name, self.folder.lower(), f"{self.name}_{self.phase.name.lower()}"


RELEASES: tuple[Release, ...] = (
    Release("t2w", "v1.0.9/t2w.zip", "T2w_semantic_v1.0.9", SpinepsPhase.SEMANTIC),
    Release("t1w", "v1.0.9/t1w.zip", "T1w_semantic_v1.0.9", SpinepsPhase.SEMANTIC),
    Release("vibe", "v1.0.9/vibe.zip", "Vibe_semantic_v1.0.9", SpinepsPhase.SEMANTIC),
    Release("ct", "v2.0.0/ct.zip", "CT_semantic_v2.0.0", SpinepsPhase.SEMANTIC),
    Release("instance", "v1.2.0/instance.zip", "instance_sagittal_v1.2.0", SpinepsPhase.INSTANCE),
    Release("ct_instance", "v2.0.0/CT_instance.zip", "CT_instance_v2.0.0", SpinepsPhase.INSTANCE),
    Release("t2w_labeling", "v1.4.0/labeling.zip", "T2w_labeling_v1.4.0", SpinepsPhase.LABELING),
    Release("ct_labeling", "v1.4.0/ct_labeling.zip", "CT_labeling_v1.4.0", SpinepsPhase.LABELING),
)


def release(name: str) -> Release | None:
    """The published model of this id (``t2w``, ``t2w_semantic``, ``labeling``, ...) or folder name, in any case.

    >>> [release(n).name for n in ("T2w", "ct_semantic", "labeling", "CT-instance", "instance_sagittal_v1.2.0")]
    ['t2w', 'ct', 't2w_labeling', 'ct_instance', 'instance']
    """
    key = name.lower().replace("-", "_")
    key = "t2w_labeling" if key == "labeling" else key
    return next((known for known in RELEASES if key in known.names), None)
