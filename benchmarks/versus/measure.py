"""Clock, memory and hand-over between the processes of ``against_reference.py``; runs in both environments."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def cpu_seconds() -> float:
    """User and system time of this process and of the children it waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_gb() -> float:
    """Largest resident size so far, GB."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a child starts at what its parent held when it was started; this does not.
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9


class Clock:
    """Seconds of named phases; time spent in ``paused`` blocks (our own stubs) counts for none of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._away = self._away_cpu = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, cpu, away, away_cpu = time.perf_counter(), cpu_seconds(), self._away, self._away_cpu
        try:
            yield
        finally:
            wall = time.perf_counter() - start - (self._away - away)
            used = cpu_seconds() - cpu - (self._away_cpu - away_cpu)
            self.seconds[name] = self.seconds.get(name, 0.0) + wall
            self.cpu[name] = self.cpu.get(name, 0.0) + used

    @contextmanager
    def paused(self) -> Iterator[None]:
        start, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            self._away += time.perf_counter() - start
            self._away_cpu += cpu_seconds() - cpu

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Time every call of a function or method where it is looked up."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)


def finish(job: dict[str, Any], clock: Clock, **more: Any) -> None:
    """Write what the parent wants to know."""
    found = {"seconds": clock.seconds, "cpu": clock.cpu, "peak_gb": peak_gb(), **more}
    Path(job["result"]).write_text(json.dumps(found))


def read_job() -> tuple[str, dict[str, Any]]:
    """Task and its settings from the command line: TASK JOB.json."""
    return sys.argv[1], json.loads(Path(sys.argv[2]).read_text())


class Answers:
    """What the instance network is made to say, so that both programs merge the same vertebrae.

    Kept per cutout: labels 0..3, and how many voxels of each input label the cutout showed.  A cutout that is asked
    about gets the answer of the recorded cutout that looked most like it, moved by how much their contents moved (the
    two programs may cut boxes of other sizes, or a voxel beside each other).
    """

    def __init__(self, file: Path) -> None:
        self._stored = np.load(file)
        self._looks = self._stored["looks"]
        self._boxes = self._stored["boxes"]
        self.names: list[int] = self._stored["names"].tolist()
        self.worst = 0.0

    def __len__(self) -> int:
        return len(self._looks)

    def to(self, cutout: np.ndarray) -> np.ndarray:
        """Labels 0..3 for a cutout of input labels, uint8."""
        look, (low, _) = describe(cutout)
        away = np.abs(self._looks - look).sum(axis=1)
        best = int(away.argmin())
        self.worst = max(self.worst, float(away[best] / max(look.sum(), 1)))
        answer = self._stored[f"answer{best}"]
        shift = low - self._boxes[best][0]
        out = np.zeros(cutout.shape, np.uint8)
        source, target = [], []
        for n, m, s in zip(answer.shape, out.shape, shift, strict=True):
            source.append(slice(max(-s, 0), max(min(n, m - s), 0)))
            target.append(slice(max(s, 0), max(min(n, m - s), 0) + s))
        out[tuple(target)] = answer[tuple(source)]
        return out


def describe(cutout: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Voxels of each label 1..15, and the corners of the box that holds them."""
    look = np.bincount(cutout.ravel().astype(np.int64), minlength=16)[1:16]
    low, high = [], []
    for axis in range(3):
        used = np.flatnonzero(cutout.any(axis=tuple(a for a in range(3) if a != axis)))
        low.append(int(used[0]) if used.size else 0)
        high.append(int(used[-1]) + 1 if used.size else 0)
    return look, (np.array(low), np.array(high))


def heads_of(names: list[int], sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """What the labelling network is made to say about vertebrae whose names (1 = C1 .. 24 = L5) are known.

    Sure of the region, fairly sure of the vertebra, silent about the rest.
    """
    rng = np.random.default_rng(seed)
    classes = np.clip(np.array(names) - 1, 0, 23)
    said = {head: np.full((len(names), k), 1 / k, np.float32) for head, k in sizes.items()}
    vertebra = rng.normal(0, 0.5, (len(names), 24))
    vertebra[np.arange(len(names)), classes] += 4
    said["VERT"] = (np.exp(vertebra) / np.exp(vertebra).sum(axis=1, keepdims=True)).astype(np.float32)
    said["REGION"] = np.eye(3, dtype=np.float32)[np.searchsorted([7, 19], classes, side="right")]
    said["FULLYVISIBLE"] = np.tile(np.array([0, 1], np.float32), (len(names), 1))
    return said
