"""How much memory a scan will need, how much there is, and how much was used."""

from __future__ import annotations

import gzip
import logging
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from math import prod
from pathlib import Path

logger = logging.getLogger(__name__)

#: A worker with the bundled models and a small scan (measured: 1.2 GB), and what every further voxel of the scan costs
#: (14 bytes measured between 1.7 and 18 million voxels on one field of view; doubled, because many fields are wider).
BASE_BYTES, BYTES_PER_VOXEL = 1_300_000_000, 30
#: Memory that is left to the rest of the machine.
SPARE_BYTES = 500_000_000
_CGROUP = Path("/sys/fs/cgroup")


def estimated_need(path: Path) -> int:
    """Bytes that a worker will need for a scan, from its header; of an unreadable one, those of a worker alone."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as stream:
            head = stream.read(112)
        return BASE_BYTES + BYTES_PER_VOXEL * _voxels(head)
    except (OSError, EOFError, struct.error):
        return BASE_BYTES


def available_bytes() -> int | None:
    """Memory that can be had now, within the limits of the control group; None where the system does not tell."""
    amounts = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        amounts.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit, used in _cgroup_files():
        with suppress(OSError, ValueError):  # "max": no limit
            amounts.append(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    return max(min(amounts), 0) if amounts else None


def resident_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Resident memory of processes (Linux; 0 elsewhere and for those that are gone)."""
    found = dict.fromkeys(pids, 0)
    for pid in found:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            found[pid] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


def cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max": no limit
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
        allowed = min(allowed, max(int(quota) // int(period), 1))
    return allowed


def gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` may be set to, one per NVIDIA device, without loading torch to find out."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device.strip()]
    devices = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return [str(n) for n, _ in enumerate(devices)]


def reset_peak() -> None:
    """From now on :func:`peak_mb` tells of what comes (Linux; elsewhere of the whole life of the process)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Largest resident memory of this process since :func:`reset_peak`, MB."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:
        return 0.0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _voxels(head: bytes) -> int:
    """From the first bytes of a NIfTI-1 or NIfTI-2 header of either byte order."""
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", head[:4])
        if size in (348, 540):
            sizes = (
                struct.unpack(f"{order}8h", head[40:56]) if size == 348 else struct.unpack(f"{order}8q", head[16:80])
            )
            return prod(max(n, 1) for n in sizes[1:4])
    return 0


def _cgroup_files() -> list[tuple[Path, Path]]:
    """(limit, use) of this process's control groups, version 2 up to the root, then version 1."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            if line.startswith("0::"):
                group = _CGROUP / line[3:].strip("/")
                groups = [g for g in (group, *group.parents) if g.is_relative_to(_CGROUP)]
                found += [(g / "memory.max", g / "memory.current") for g in groups]
    old = _CGROUP / "memory"
    return [*found, (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes")]
