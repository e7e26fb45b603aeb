"""Workers of a Dask cluster, and Slurm: through Dask (``dask-jobqueue``) or as an array of independent jobs.

Needs the extra ``spineps[dask]``, but for the array.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from spineps.dataset.pool import WorkerDied
from spineps.errors import OptionError, SpinepsError

logger = logging.getLogger(__name__)

#: How long (s) the number of workers is believed.
RECENT = 2.0
INSTALL = "Run: pip install 'spineps[dask]'"
#: What --slurm understands, and the keyword of dask_jobqueue.SLURMCluster or SBATCH option that it becomes.
SLURM_KEYS = ("partition", "account", "time", "jobs", "cores", "memory", "interface", "gpus", "extra")
_GONE = SpinepsError("The Dask scheduler is gone.", "Start it again; the same command goes on from here.")


class DaskPool:
    """The workers of a Dask ``Client``, one scan at a time on each.

    Give workers one thread: a worker is the process that a scan's memory and crash belong to.
    """

    def __init__(self, client: Any, threads: int | None = None, owned: Sequence[Any] = ()) -> None:
        self.client = client
        self.threads = threads
        self._owned = owned
        self._futures: set[Any] = set()
        self._size, self._asked = 1, 0.0

    @property
    def size(self) -> int:
        """Workers, as they come and go; 1 while there is none, so that something waits for the first."""
        if time.monotonic() - self._asked > RECENT:
            self._size, self._asked = max(len(self.client.nthreads()), 1), time.monotonic()
        return self._size

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """See :class:`~spineps.dataset.schedule.Pool`."""
        answer: Future[Any] = Future()
        if self.client.status != "running":
            raise _GONE
        future = self.client.submit(function, task, pure=False)
        self._futures.add(future)
        future.add_done_callback(lambda done: self._settle(done, answer))
        return answer

    def close(self) -> None:
        """Cancel what has not begun, and end what was started for this run."""
        if self._futures:
            self.client.cancel(list(self._futures))
        for thing in self._owned:
            thing.close()

    def _settle(self, future: Any, answer: Future[Any]) -> None:
        from distributed import KilledWorker

        self._futures.discard(future)
        if future.cancelled():
            lost = self.client.status == "running"
            answer.set_exception(WorkerDied("Dask has lost the task.") if lost else _GONE)
            return
        error = future.exception()
        if isinstance(error, KilledWorker):
            answer.set_exception(WorkerDied(f"The Dask worker {error.last_worker} died."))
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(future.result())


def connected(scheduler: str) -> DaskPool:
    """The workers of a running scheduler, such as ``tcp://head:8786`` or a scheduler file."""
    try:
        from distributed import Client
    except ImportError as error:
        raise OptionError("Dask is not installed.", INSTALL) from error
    try:
        client = Client(scheduler) if "://" in scheduler else Client(scheduler_file=scheduler)
    except (OSError, ValueError) as error:
        cure = "Start one with `dask scheduler` and `dask worker ADDRESS --nthreads 1`."
        raise OptionError(f"There is no Dask scheduler at {scheduler} ({error}).", cure) from error
    return DaskPool(client, owned=[client])


def slurm_cluster(settings: Mapping[str, str], logs: Path) -> Any:
    """A ``dask_jobqueue.SLURMCluster`` whose jobs are one worker each; not scaled yet.

    Args:
        settings: see :func:`parse_slurm`.
        logs: folder of the jobs' output.
    """
    try:
        import dask
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise OptionError("Dask for Slurm is not installed.", INSTALL) from error
    # A scan that kills its worker comes back at once: trying it elsewhere is for us to decide.
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    cores = int(settings.get("cores", 4))
    extra = [f"--gres=gpu:{settings['gpus']}"] if "gpus" in settings else []
    return SLURMCluster(
        queue=settings.get("partition"),
        account=settings.get("account"),
        walltime=settings.get("time", "08:00:00"),
        interface=settings.get("interface"),
        cores=cores,
        processes=1,
        memory=settings.get("memory", "8GB"),
        # Dask would run as many scans at once as there are cores; these belong to the networks of one.
        worker_extra_args=["--nthreads", "1"],
        job_script_prologue=[f"export OMP_NUM_THREADS={cores}"],
        job_extra_directives=[*extra, *shlex.split(settings.get("extra", ""))],
        log_directory=str(logs),
        scheduler_options={"dashboard_address": ":0"},  # any free port: login nodes are shared
    )


def slurm_pool(settings: Mapping[str, str], logs: Path) -> DaskPool:
    """Submit the jobs of :func:`slurm_cluster`; scans begin when the first one runs."""
    logs.mkdir(parents=True, exist_ok=True)
    cluster = slurm_cluster(settings, logs)
    from distributed import Client

    cluster.scale(jobs=int(settings.get("jobs", 1)))
    client = Client(cluster)
    return DaskPool(client, int(settings.get("cores", 4)), [client, cluster])


def parse_slurm(text: str) -> dict[str, str]:
    """
    >>> parse_slurm("partition=cpu,time=04:00:00,jobs=8")
    {'partition': 'cpu', 'time': '04:00:00', 'jobs': '8'}
    """
    settings = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in SLURM_KEYS:
            raise OptionError(f"--slurm does not know {part!r}.", f"Give key=value of: {', '.join(SLURM_KEYS)}.")
        settings[key.strip()] = value.strip()
    for key in ("jobs", "cores"):
        if not settings.get(key, "1").isdigit() or int(settings.get(key, 1)) < 1:
            raise OptionError(f"--slurm: {key} is {settings[key]!r}.", "Give a number from 1.")
    return settings


def slurm_script(dataset: Path, settings: Mapping[str, str], options: Sequence[str], program: str, logs: Path) -> str:
    """An sbatch array: every job does one shard, any of them can be submitted again and goes on where it was.

    Args:
        dataset: the folder.
        settings: see :func:`parse_slurm`; ``jobs`` is the size of the array.
        options: further words of ``spineps dataset``.
        program: how ``spineps`` is called there.
        logs: folder of the jobs' output.
    """
    jobs, cores = int(settings.get("jobs", 16)), settings.get("cores", "4")
    directives = {
        "job-name": "spineps",
        "array": f"1-{jobs}",
        "ntasks": "1",
        "cpus-per-task": cores,
        "mem": settings.get("memory", "8G").replace("GB", "G"),
        "time": settings.get("time", "08:00:00"),
        "partition": settings.get("partition"),
        "account": settings.get("account"),
        "gres": f"gpu:{settings['gpus']}" if "gpus" in settings else None,
        "signal": "B:TERM@60",
        "requeue": "",
        "open-mode": "append",
        "output": f'"{logs}/%A_%a.log"',
    }
    lines = [f"#SBATCH --{k}={v}" if v else f"#SBATCH --{k}" for k, v in directives.items() if v is not None]
    lines += [f"#SBATCH {word}" for word in shlex.split(settings.get("extra", ""))]
    words = shlex.join(["dataset", "--directory", str(dataset), *options, "--threads", cores])
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "",
            f"# {jobs} parts of {dataset}. Start with `bash` (makes the folder of the logs) or with `sbatch`;",
            "# start it again after a time limit or a failed node: what is done is left alone.",
            'if [ -z "$SLURM_ARRAY_TASK_ID" ]; then',
            f"    mkdir -p {shlex.quote(str(logs))}",
            '    exec sbatch "$0"',
            "fi",
            f"export OMP_NUM_THREADS={cores}",
            # exec: the signal before the time limit reaches spineps itself, which then ends in good order.
            f'exec {program} {words} --shard "$SLURM_ARRAY_TASK_ID/{jobs}"',
            "",
        ]
    )
