"""Many scans at once: workers that die, hang and are interrupted, on this machine and on Dask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_runner import PAIR, scans, setup

from spineps.dataset import cluster, schedule
from spineps.dataset import ledger as book
from spineps.dataset.find import find_scans
from spineps.dataset.ledger import Entry
from spineps.dataset.plan import Plan, Resume, make_plan
from spineps.dataset.pool import LocalPool, WorkerDied
from spineps.dataset.schedule import Pool, Stop, run
from spineps.dataset.worker import run_one
from spineps.errors import OptionError
from spineps.outputs import writer
from spineps.outputs.writer import SUFFIX

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
HERE = str(Path(__file__).parent)


def go(root: Path, pool: Pool, **changes: object) -> tuple[Plan, dict[str, Entry]]:
    this = setup(root, **changes)
    plan = make_plan(find_scans(root, [PAIR]), this)
    try:
        with Stop() as stop:
            return plan, {Path(e.scan).name.split("_")[0][4:]: e for e in run(plan, this, Resume(), stop, pool)}
    finally:
        pool.close()


def output(root: Path, entry: Entry) -> str:
    return entry.paths(root / "derivatives_seg")["out_spine"].read_text()


def test_workers_that_die_hang_and_fail(tmp_path: Path) -> None:
    words = {f"{n}": "good" for n in range(6)}
    scans(tmp_path, {**words, "die": "die", "once": "die-once", "hang": "hang", "bad": "bad", "boom": "boom"})
    start = time.perf_counter()
    _, entries = go(tmp_path, LocalPool(2), timeout=4.0)
    assert time.perf_counter() - start < 120
    said = {name: (e.status, e.code, e.attempt) for name, e in entries.items()}
    assert said == {
        **dict.fromkeys(words, (book.DONE, "OK", 1)),
        "die": (book.CRASHED, "CRASHED", 2),
        "once": (book.DONE, "OK", 2),
        "hang": (book.FAILED, "TIMEOUT", 1),
        "bad": (book.FAILED, "VALUES", 1),
        "boom": (book.FAILED, "UNKNOWN", 1),
    }
    assert "signal 9" in entries["die"].message and "--timeout" in entries["hang"].message
    lines = list(book.history(tmp_path / "derivatives_seg"))
    tries = {name: sum(f"sub-{name}_" in e.scan and e.status == book.STARTED for e in lines) for name in said}
    assert tries == {**dict.fromkeys(said, 1), "die": 2, "once": 2}  # nothing is done twice without need
    assert {Path(e.scan).name: e.status for e in book.read(tmp_path / "derivatives_seg")} == {
        f"sub-{name}_T2w.nii.gz": status for name, (status, _, _) in said.items()
    }
    assert str(os.getpid()) not in {output(tmp_path, entries[name]) for name in words}
    plan = make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path))
    assert (len(plan.finished), len(plan.failed), [t.attempt for t in plan.todo]) == (7, 3, [3])
    _, entries = go(tmp_path, LocalPool(1))  # the deadly one is tried a last time
    assert [(e.status, e.attempt) for e in entries.values()] == [(book.CRASHED, 3)]
    assert not make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path)).todo


def test_a_worker_killed_from_outside_costs_one_scan(tmp_path: Path) -> None:
    scans(tmp_path, {"0": "slow 1.5", "1": "good", "2": "good"})
    killer = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {HERE!r})
begun = Path({str(tmp_path)!r}, "rawdata/sub-0/sub-0_T2w.nii.gz.begun")
while not begun.exists():
    time.sleep(0.01)
from spineps.dataset import ledger as book
line = book.last_word(Path({str(tmp_path / "derivatives_seg")!r}), "rawdata/sub-0/sub-0_T2w.nii.gz")
os.kill(int(line.worker.split("-")[-2]), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", killer])
    _, entries = go(tmp_path, LocalPool(1))
    assert process.wait() == 0
    assert {(e.status, e.attempt) for e in entries.values()} == {(book.DONE, 2), (book.DONE, 1)}
    assert entries["0"].attempt == 2


def test_a_pool_divides_the_threads_and_replaces_the_dead() -> None:
    pool = LocalPool(1, threads=3)
    try:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "3"
        with pytest.raises(WorkerDied, match="exit status 7"):
            pool.submit(os._exit, 7).result()
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "3" and pool.resident() > 1e6
        busy = pool.submit(time.sleep, 100)
        time.sleep(0.1)
    finally:
        pool.close()
    with pytest.raises(WorkerDied):
        busy.result()
    with pytest.raises(RuntimeError):
        pool.submit(os.getpid, None)
    assert os.environ.get("OMP_NUM_THREADS") != "3"


def test_a_huge_folder_is_not_searched_before_every_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Path] = []
    monkeypatch.setattr(writer, "remove_leftovers", lambda folder: searched.append(folder) or time.sleep(0.02))
    for _ in range(3):
        writer.sweep(tmp_path)
    assert searched == [tmp_path]
    monkeypatch.setattr(writer, "remove_leftovers", searched.append)
    for _ in range(3):
        writer.sweep(tmp_path / "small")
    assert len(searched) == 4


def test_one_gpu_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pool = LocalPool(3, use_gpus=True)
    assert [w.environment["CUDA_VISIBLE_DEVICES"] for w in pool._workers] == ["2", "5", "2"]
    pool.close()


def test_never_more_than_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans(tmp_path, {"1": "good", "2": "good", "3": "good"})
    one, two, three = make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path)).todo
    monkeypatch.setattr(schedule, "estimated_need", lambda path: 10**9)
    pool = LocalPool(4)
    free = 2 * 10**9 + schedule.SPARE_BYTES
    for amount, running, fits in (
        (1, [], True),  # a scan alone is always tried
        (free, [one], True),
        (free - 1, [one], False),
        (free, [one, two], False),
        (None, [one, two], True),
        (10**12, [one, two, three, one], False),  # no worker is free
    ):
        monkeypatch.setattr(schedule, "available_bytes", lambda amount=amount: amount)
        assert schedule._may_start(three, running, {}, pool) == fits
    monkeypatch.setattr(schedule, "available_bytes", lambda: free - 10**9)
    monkeypatch.setattr(LocalPool, "resident", lambda self: 10**9)  # what the worker has taken is not counted twice
    assert schedule._may_start(three, [one], {}, pool)
    pool.close()


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from quick_runner import PAIR, setup
from spineps.dataset.find import find_scans
from spineps.dataset.plan import Resume, make_plan
from spineps.dataset.pool import LocalPool
from spineps.dataset.schedule import Interrupted, Stop, run
if __name__ == "__main__":
    this = setup(Path(sys.argv[1]))
    workers = int(sys.argv[3])
    pool = LocalPool(workers) if workers else None
    with Stop() as stop:
        try:
            for entry in run(make_plan(find_scans(this.dataset, [PAIR]), this), this, Resume(), stop, pool):
                print(entry.scan, entry.status, flush=True)
        except Interrupted as interrupt:
            sys.exit(128 + interrupt.signal)
        finally:
            if pool:
                pool.close()
    sys.exit(77 if stop.asked else 0)
"""


def start(tmp_path: Path, workers: int) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"  # workers are spawned, so the main module must be a file
    script.write_text(RUN)
    arguments = [sys.executable, str(script), str(tmp_path), HERE, str(workers)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    begun = tmp_path / "rawdata" / "sub-2" / "sub-2_T2w.nii.gz.begun"
    until(lambda: begun.exists() and told(tmp_path)["1"] == book.DONE)
    return process


def until(condition: Callable[[], bool]) -> None:
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def told(root: Path) -> dict[str, str]:
    return {Path(e.scan).name[4:5]: e.status for e in book.read(root / "derivatives_seg")}


@pytest.mark.parametrize("workers", [0, 1])
def test_interrupted_runs_leave_nothing_unsaid(tmp_path: Path, workers: int) -> None:
    scans(tmp_path, {"1": "good", "2": "slow 1", "3": "good", "4": "good"})
    process = start(tmp_path, workers)
    process.send_signal(signal.SIGINT)  # the scan at work is finished, and no other begun
    assert process.wait(20) == 77 and process.stdout is not None
    process.stdout.close()
    said = told(tmp_path)
    # In one process the next scan has been read meanwhile; that is all that happens to it.
    assert said["1"] == said["2"] == book.DONE and said.get("3", book.DONE) == book.DONE and "4" not in said
    assert make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path)).seen == 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_runs_go_on_where_they_were(tmp_path: Path, workers: int, number: int) -> None:
    scans(tmp_path, {"1": "good", "2": "slow 40", "3": "good"})
    process = start(tmp_path, workers)
    before = time.perf_counter()
    process.send_signal(number)
    assert process.wait(20) == (128 + number if number == signal.SIGTERM else -number)
    assert process.stdout is not None
    process.stdout.close()
    wanted = book.SKIPPED if number == signal.SIGTERM else book.CRASHED
    until(lambda: told(tmp_path)["2"] == wanted)  # a worker notices that its parent is gone
    assert told(tmp_path)["1"] == book.DONE
    assert time.perf_counter() - before < 30
    assert not list(tmp_path.rglob(f"*{SUFFIX}"))
    scans(tmp_path, {"2": "good"})
    _, entries = go(tmp_path, LocalPool(1))
    assert set(entries) == {"2", "3"} and {e.status for e in entries.values()} == {book.DONE}


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    scans(tmp_path, {"1": "good"})
    script = tmp_path / "script.py"
    script.write_text(RUN.replace('if __name__ == "__main__":', "if True:"))
    arguments = [sys.executable, str(script), str(tmp_path), HERE, "1"]
    process = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1 and "__name__ == '__main__'" in process.stderr.splitlines()[-1]
    assert {e.status for e in book.read(tmp_path / "derivatives_seg")} <= {book.SKIPPED}


class TestDask:
    """The same on a Dask cluster."""

    def test_workers_that_die_hang_and_fail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        distributed = pytest.importorskip("distributed")
        import dask

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        scans(tmp_path, {**{f"{n}": "good" for n in range(4)}, "die": "die", "once": "die-once", "hang": "hang"})
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 0}),
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
            ) as local,
        ):
            _, entries = go(tmp_path, cluster.connected(local.scheduler_address), timeout=4.0)
        said = {name: (e.status, e.code, e.attempt) for name, e in entries.items()}
        assert said == {
            **{f"{n}": (book.DONE, "OK", 1) for n in range(4)},
            "die": (book.CRASHED, "CRASHED", 2),
            "once": (book.DONE, "OK", 2),
            "hang": (book.FAILED, "TIMEOUT", 1),
        }

    def test_slurm_jobs_are_one_worker_each(self, tmp_path: Path) -> None:
        pytest.importorskip("dask_jobqueue")
        settings = cluster.parse_slurm("partition=long,time=04:00:00,jobs=3,cores=6,memory=12GB,gpus=1,account=me")
        jobs = cluster.slurm_cluster(settings, tmp_path)
        try:
            script = jobs.job_script()
        finally:
            jobs.close()
        for line in ("-p long", "-A me", "-t 04:00:00", "--cpus-per-task=6", "--mem=12G", "--gres=gpu:1"):
            assert f"#SBATCH {line}" in script
        assert script.rstrip().endswith("--nthreads 1") and "export OMP_NUM_THREADS=6" in script
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)

    def test_wrong_settings(self) -> None:
        for text in ("queue=x", "partition", "jobs=0", "cores=many"):
            with pytest.raises(OptionError):
                cluster.parse_slurm(text)


def test_slurm_array(tmp_path: Path) -> None:
    settings = cluster.parse_slurm("jobs=5,cores=2,gpus=1")
    script = cluster.slurm_script(tmp_path / "my data", settings, ["--no-n4"], "spineps", tmp_path / "my logs")
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert "#SBATCH --array=1-5" in script and "#SBATCH --gres=gpu:1" in script
    # Run as a job of the array, with a program that shows what it is given.
    show = script.replace("exec spineps", "exec printf '%s\\n'")
    shown = subprocess.run(
        ["bash"], input=show, capture_output=True, text=True, env={"SLURM_ARRAY_TASK_ID": "4", "PATH": os.defpath}
    )
    assert shown.stdout.splitlines() == [
        "dataset", "--directory", str(tmp_path / "my data"), "--no-n4", "--threads", "2", "--shard", "4/5",
    ]  # fmt: skip


def test_run_one_is_what_travels(tmp_path: Path) -> None:
    import pickle

    scans(tmp_path, {"1": "good"})
    this = setup(tmp_path)
    (task,) = make_plan(find_scans(tmp_path, [PAIR]), this).todo
    packed = this.packed(2)
    assert len(pickle.dumps(task)) < 20_000 and len(packed) < 20_000
    entry = run_one(pickle.loads(pickle.dumps(task)))
    assert entry.status == book.DONE and entry.outputs["out_spine"][1] > 0
