"""Worker processes on this machine.

Every worker has its own pipe, so that the death of one, at whatever moment, can neither block nor break the others
(``concurrent.futures.ProcessPoolExecutor`` gives up as a whole).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from spineps.dataset.memory import cores, gpus, resident_bytes

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
#: The environment is the only way to tell libraries of a new process how many threads and which GPU they may use.
_ENVIRONMENT = threading.Lock()
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class WorkerDied(RuntimeError):
    """The process that worked on a task is gone; tells how."""


def _death(status: int | None) -> WorkerDied:
    """From the exit status of a process, negative for the signal that killed it."""
    why = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
    if status is not None and -status == getattr(signal, "SIGKILL", 9):
        why += ", often a lack of memory"
    return WorkerDied(f"The worker died ({why}).")


class LocalPool:
    """Worker processes that are started when first needed and replaced when they die.

    Args:
        size: how many; one per GPU when there are GPUs and ``use_gpus`` is set.
        threads: CPU threads of each; None divides the cores.
        use_gpus: give every worker a GPU of its own.
    """

    def __init__(self, size: int, threads: int | None = None, use_gpus: bool = False) -> None:
        devices = gpus() if use_gpus else []
        self.threads = threads or max(cores() // size, 1)
        self._workers = [
            _Worker(dict.fromkeys(THREADS, str(self.threads)) | _device(devices, number)) for number in range(size)
        ]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(size)

    @property
    def size(self) -> int:
        """Tasks that can run at once."""
        return len(self._workers)

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """``function(task)`` in a worker; :class:`WorkerDied` when the worker does not survive it."""
        return self._threads.submit(self._run, function, task)

    def resident(self) -> int:
        """Memory that the workers hold now, bytes."""
        return sum(resident_bytes(w.process.pid for w in self._workers if w.process and w.process.pid).values())

    def close(self) -> None:
        """Let the workers end; those at work are killed."""
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, function: Callable[[Any], Any], task: Any) -> Any:
        worker = self._free.get()
        try:
            return worker.call(function, task)
        finally:
            self._free.put(worker)


class _Worker:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.process: Any = None
        self._pipe: Connection | None = None
        self._stopped = False

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((function, task))
            return self._pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            status, self._pipe = self.process.exitcode, None
            raise _death(status) from None

    def stop(self) -> None:
        self._stopped = True
        if self.process is not None and self.process.is_alive():
            self.process.terminate()
            self.process.join(5)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()

    def _start(self) -> None:
        if self._stopped:
            raise WorkerDied("The run is over.")
        self._pipe, theirs = _SPAWN.Pipe()
        with _ENVIRONMENT:
            before = {name: os.environ.get(name) for name in self.environment}
            os.environ.update(self.environment)
            try:
                self.process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
                self.process.start()
            finally:
                for name, value in before.items():
                    os.environ.pop(name, None)
                    if value is not None:
                        os.environ[name] = value
        theirs.close()


def _serve(pipe: Connection) -> None:
    """The life of a worker: it ends with its parent, even when that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            function, task = pipe.recv()
            pipe.send(function(task))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _device(devices: Sequence[str], number: int) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
