"""A runner of tasks that does what the scan's file says: workers of other processes import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from spineps import Acquisition, ErrCode, Modality
from spineps.dataset.job import Job, Outcome
from spineps.dataset.worker import Setup
from spineps.errors import ValueRangeError
from spineps.outputs.writer import Writer
from spineps.pipeline import Models

PAIR = (Modality.T2w, Acquisition.sag)


class Named:
    """The little of a model that the schedule wants to know."""

    device = "cpu"
    precision = None

    def __init__(self, fingerprint: str = "stub") -> None:
        self.fingerprint = fingerprint * 8


class Quick:
    """In place of :class:`spineps.dataset.job.JobRun`: the first word of the scan's file decides what happens."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.outcome = Outcome(ErrCode.UNKNOWN)
        self.words: list[str] = []

    def read(self) -> None:
        self.words = self.job.scan.path.read_text().split() or ["good"]

    def segment(self) -> None:
        word = self.words[0]
        once = self.job.scan.path.with_name(f"{self.job.scan.stem}.once")
        if word == "die" or (word == "die-once" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "hang":
            time.sleep(600)
        elif word == "boom":
            raise ZeroDivisionError("boom")
        elif word == "slow":
            Path(f"{self.job.scan.path}.begun").touch()
            time.sleep(float(self.words[1]))

    def write(self) -> None:
        if self.words[0] == "bad":
            error = ValueRangeError(f"{self.job.scan.path} holds colours.", "Convert it.")
            self.outcome = Outcome(error.code, error=error)
            return
        with Writer() as writer:
            for key in ("out_spine", "out_prov"):
                writer.write(self.job.paths[key], lambda stream: stream.write(f"{os.getpid()}".encode()))
        self.outcome = Outcome(ErrCode.OK, seconds=0.01)


def scans(root: Path, words: dict[str, str]) -> Path:
    """A data set with one file per subject."""
    for label, text in words.items():
        path = root / "rawdata" / f"sub-{label}" / f"sub-{label}_T2w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def setup(root: Path, **changes: object) -> Setup:
    models = Models(Named(), Named(), None)  # type: ignore[arg-type]
    return Setup(**{"dataset": root, "pairs": (PAIR,), "models": (models,), "runner": Quick, **changes})  # type: ignore
