"""Whole data sets: what finding, resuming and scheduling cost, and what is left after every kind of accident.

    python benchmarks/dataset.py index overhead resume throughput faults --folder /scratch/bench --json numbers.json

``index``: finding the scans among 30,000 files.  ``overhead``: what the schedule adds to each of 2,000 scans, and
memory over them.  ``resume``: recognising what is done.  ``throughput``: phantoms with the bundled models, against a
plain loop.  ``faults``: 200 scans on Dask workers while workers and the main process are killed, the disk runs full,
scans are corrupt and one hangs.  Every part makes its own folder below ``--folder`` and removes it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from stub_networks import PAIR, Idle, stub_setup, write_scan

from spineps.dataset import ledger as book
from spineps.dataset.find import find_scans
from spineps.dataset.memory import peak_mb, reset_peak, resident_bytes
from spineps.dataset.plan import Resume, make_plan
from spineps.dataset.pool import LocalPool
from spineps.dataset.schedule import Interrupted, Pool, Stop, run
from spineps.dataset.worker import Setup, Work
from spineps.outputs.provenance import is_current, read_record
from spineps.outputs.writer import SUFFIX

HERE = Path(__file__).resolve().parent
ROWS: list[dict[str, Any]] = []


def tell(part: str, what: str, **numbers: Any) -> None:
    """One line of the table."""
    numbers = {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}
    ROWS.append({"part": part, "what": what, **numbers})
    print(f"{part:<11} {what:<44} " + "  ".join(f"{k} {v}" for k, v in numbers.items()), flush=True)


@contextlib.contextmanager
def folder_in(base: Path, name: str) -> Iterator[Path]:
    path = base / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- index


def index(base: Path, count: int) -> None:
    """Ours and TPTBox's, each in a process of its own, twice (the second with a warm cache)."""
    with folder_in(base, "index") as root:
        made = 0
        for subject in range(10**6):
            for session in (1, 2):
                here = root / "rawdata" / f"sub-{subject:06d}" / f"ses-{session}" / "anat"
                here.mkdir(parents=True)
                stem = f"sub-{subject:06d}_ses-{session}"
                for kind in ("acq-sag_T2w", "acq-sag_T1w"):
                    (here / f"{stem}_{kind}.nii.gz").touch()
                    (here / f"{stem}_{kind}.json").write_text('{"ImageType": ["ORIGINAL", "PRIMARY"]}')
                (here / f"{stem}_acq-ax_T2w.nii.gz").touch()
                made += 5
            if made >= count:
                break
        for who in ("ours", "tptbox") * 2:
            command = [sys.executable, str(HERE / "dataset.py"), "_index", "--folder", str(root), "--who", who]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            tell("index", f"{made} files, {who}", **answer)


def index_child(root: Path, who: str) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    if who == "ours":
        found = len(find_scans(root, [PAIR]).scans)
    else:
        from TPTBox import BIDS_Global_info

        start, cpu, found = time.perf_counter(), time.process_time(), 0
        with contextlib.redirect_stdout(io.StringIO()):
            for _, subject in BIDS_Global_info([root], ["rawdata"], verbose=False).iter_subjects(sort=True):
                query = subject.new_query(flatten=True)
                query.filter_filetype(["nii.gz", "nii"])
                for key in ("seg", "label", "lesions"):
                    query.filter_non_existence(key)
                query.filter_format(list(PAIR[0].format_keys))
                query.filter("acq", lambda value: value in PAIR[1].format_keys, required=False)
                query.filter_dixon_only_inphase()
                found += sum(1 for _ in query.loop_list())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"scans": found, "seconds": round(seconds, 2), "cpu": round(cpu, 2), "rss_mb": peak_mb()}))


# ----------------------------------------------------------------------------------------------------------- overhead


def tiny_scans(root: Path, count: int, write: Callable[[Path, int], None] = write_scan) -> None:
    for number in range(count):
        write(root / "rawdata" / f"sub-{number:05d}" / f"sub-{number:05d}_T2w.nii.gz", number)


def overhead(base: Path, count: int, real: int) -> None:
    """The schedule alone over ``count`` scans; then stub networks with real files over ``real`` scans."""
    with folder_in(base, "overhead") as root:
        tiny_scans(root, count, lambda path, number: (path.parent.mkdir(parents=True), path.write_bytes(b"x")))
        start = time.perf_counter()
        for _ in range(count):
            Idle(None).read()  # type: ignore[arg-type]
        plain = (time.perf_counter() - start) / count
        for name, pool in pools():
            shutil.rmtree(root / "derivatives_seg", ignore_errors=True)
            timed(
                "overhead", f"{count} scans, nothing to do, {name}", stub_setup(root, runner=Idle), pool, count, plain
            )
    with folder_in(base, "overhead") as root:
        tiny_scans(root, real)
        plan = make_plan(find_scans(root, [PAIR]), stub_setup(root))
        start = time.perf_counter()
        for task in plan.todo:  # the plain loop: no schedule, no ledger
            work = Work(task)
            for step in (work.run.read, work.run.segment, work.run.write):
                step()
        plain = (time.perf_counter() - start) / real
        tell("overhead", f"{real} scans, stub networks, plain loop", ms_per_scan=1e3 * plain)
        for name, pool in pools(dask=False):
            shutil.rmtree(root / "derivatives_seg", ignore_errors=True)
            timed("overhead", f"{real} scans, stub networks, {name}", stub_setup(root), pool, real, plain)


def pools(dask: bool = True) -> Iterator[tuple[str, Pool | None]]:
    yield "this process", None
    for size in (1, 2):
        pool = LocalPool(size)
        yield f"{size} worker(s)", pool
        pool.close()
    if dask:
        with dask_pool(2) as pool_:
            yield "2 Dask workers", pool_


@contextlib.contextmanager
def dask_pool(size: int, folder: str | None = None) -> Iterator[Pool]:
    import dask
    from distributed import Client, LocalCluster

    from spineps.dataset.cluster import DaskPool

    # Workers find the stub networks where this script does.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "tests")])
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL, "local_directory": folder}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=size, threads_per_worker=1, **quiet) as cluster,
        Client(cluster) as client,
    ):
        yield DaskPool(client, 1)


def timed(part: str, what: str, setup: Setup, pool: Pool | None, count: int, plain: float) -> None:
    """Run, and tell what it took, with the memory after a tenth and at the end."""
    start = time.perf_counter()
    plan = make_plan(find_scans(setup.dataset, [PAIR]), setup)
    planned = time.perf_counter() - start
    memory, start = [], 0.0
    with Stop() as stop:
        for number, entry in enumerate(run(plan, setup, Resume(), stop, pool), 1):
            assert entry.status == book.DONE, entry
            if number == 1:
                start = time.perf_counter()  # workers are up
            if number in (max(count // 10, 2), count):
                workers = pool.resident() if isinstance(pool, LocalPool) else 0
                memory.append((resident_bytes([os.getpid()])[os.getpid()] + workers) / 1e6)
    seconds = (time.perf_counter() - start) / (count - 1)
    tell(
        part,
        what,
        ms_per_scan=1e3 * seconds,
        ms_over_plain=1e3 * (seconds - plain),
        plan_ms_per_scan=1e3 * planned / count,
        rss_mb_at_tenth=round(memory[0], 1),
        rss_mb_at_end=round(memory[1], 1),
    )


# ------------------------------------------------------------------------------------------------------------- resume


def resume(base: Path, count: int) -> None:
    """Recognise finished scans by size and time, or by hash; small scans, so a hash costs little here."""
    with folder_in(base, "resume") as root:
        tiny_scans(root, count)
        setup = stub_setup(root)
        with Stop() as stop:
            for _ in run(make_plan(find_scans(root, [PAIR]), setup), setup, Resume(), stop):
                pass
        read = sum(path.stat().st_size for path in root.rglob("*") if path.suffix != ".jsonl" and path.is_file())
        for how in (Resume(), Resume(verify=True)):
            start = time.perf_counter()
            with Stop() as stop:
                plan = make_plan(find_scans(root, [PAIR]), setup, how)
                rest = list(run(plan, setup, how, stop))
            seconds = time.perf_counter() - start
            assert len(plan.finished) + sum(e.code == "ALL_DONE" for e in rest) == count
            what = f"{count} finished scans, {'hashes' if how.verify else 'sizes and times'}"
            tell("resume", what, ms_per_scan=1e3 * seconds / count, mb_per_scan=read / count / 1e6)
        size = sum(path.stat().st_size for path in setup.ledger.iterdir() if path.is_file())
        start = time.perf_counter()
        book.read(setup.ledger)
        tell("resume", "ledger", bytes_per_scan=size // count, us_per_scan=1e6 * (time.perf_counter() - start) / count)


# --------------------------------------------------------------------------------------------------------- throughput


def throughput(base: Path, count: int) -> None:
    """Bundled models on generated scans: a plain loop, this process, two workers."""
    from spineps import get_instance_model, get_labeling_model, get_semantic_model, process_dataset, process_img_nii
    from spineps.cli.demo import write_phantom

    with folder_in(base, "throughput") as root:
        for seed in range(count):
            made = write_phantom(root / "made", "lumbar", "T2", seed + 1)
            scan = next(path for path in made.values() if path.name.endswith("T2w.nii.gz"))
            target = root / "rawdata" / f"sub-{seed}" / f"sub-{seed}_T2w.nii.gz"
            target.parent.mkdir(parents=True)
            shutil.move(scan, target)

        def plain() -> None:
            models = get_semantic_model("t2w"), get_instance_model(), get_labeling_model()
            for path in sorted((root / "rawdata").rglob("*.nii.gz")):
                process_img_nii(path, *models, derivative_name=str(root / "derivatives_seg"))

        def ours(workers: int | None) -> None:
            labeling = get_labeling_model()
            answer = process_dataset(root, model_labeling=labeling, workers=workers, save_log_data=False)
            assert answer["processed"] == count, answer

        ways = {"plain loop": plain, "this process": lambda: ours(None), "2 workers": lambda: ours(2)}
        for name, way in ways.items():
            shutil.rmtree(root / "derivatives_seg", ignore_errors=True)
            reset_peak()
            start = time.perf_counter()
            way()
            seconds = time.perf_counter() - start
            tell("throughput", f"{count} phantoms, {name}", seconds_per_scan=seconds / count, peak_mb_main=peak_mb())


# ------------------------------------------------------------------------------------------------------------- faults

CORRUPT, HANG_TIMEOUT = 10, 20.0


def faults(base: Path, count: int) -> None:
    """See the head of this file."""
    with folder_in(base, "faults") as root:
        good = fault_scans(root, count)
        small = SmallDisk(root / "disk")
        with small:
            out = root / "disk" / "out"
            log = (root / "main.log").open("ab")
            accidents = Accidents(out, small)
            start = time.perf_counter()
            runs = quiet = 0
            while quiet < 2:  # the last run finds out that nothing, or only what died twice, is left to be done
                runs += 1
                process = subprocess.Popen(main_command(root, out), stdout=log, stderr=log, start_new_session=True)
                code = accidents.watch(process, count)
                quiet += code == 0 and accidents.over
                if runs > 20:
                    raise SystemExit(f"the run does not come to an end, see {root / 'main.log'}")
            seconds = time.perf_counter() - start
            log.close()
            judge(root, out, good, accidents, runs, seconds)


def fault_scans(root: Path, count: int) -> set[str]:
    """Scans of which some are corrupt in different ways and one makes the network hang; returns the good ones."""
    good = set()
    for number in range(count):
        path = root / "rawdata" / f"sub-{number:03d}" / f"sub-{number:03d}_T2w.nii.gz"
        write_scan(path, number, hang=number == 1)
        whole = path.read_bytes()
        if number == count - 1 or (number and number % (count // CORRUPT) == 0):
            bad = (whole[: len(whole) // 2], b"", b"not an image", whole[:400] + b"\0" * (len(whole) - 400))
            path.write_bytes(bad[number % len(bad)])
        elif number != 1:
            good.add(path.relative_to(root).as_posix())
    return good


def main_command(root: Path, out: Path) -> list[str]:
    return [sys.executable, str(HERE / "dataset.py"), "_main", "--folder", str(root), "--out", str(out)]


def main_child(root: Path, out: Path) -> None:
    """The main process of the fault run: a Dask cluster of two workers of its own."""
    setup = stub_setup(root, derivative_name=str(out), timeout=HANG_TIMEOUT)
    with dask_pool(2, str(root / "dask")) as pool, Stop() as stop:
        try:
            for entry in run(make_plan(find_scans(root, [PAIR]), setup), setup, Resume(), stop, pool):
                print(entry.scan, entry.status, entry.code, entry.message, flush=True)
        except Interrupted as interrupted:
            raise SystemExit(128 + interrupted.signal) from interrupted


class SmallDisk:
    """A file system of its own for the results, which can be filled: a tmpfs (needs the right to mount one)."""

    def __init__(self, path: Path) -> None:
        self.path, self.ballast = path, path / "ballast"
        self.mounted = False

    def __enter__(self) -> SmallDisk:
        self.path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(self.path)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
        if not self.mounted:
            print("no right to mount a small disk: the accident 'disk full' is left out", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=False)

    def fill(self) -> bool:
        with contextlib.suppress(OSError), self.ballast.open("wb") as stream:
            while self.mounted:
                stream.write(b"\0" * 65536)
                stream.flush()
        return self.mounted

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)


class Accidents:
    """Causes each accident when so many scans have come to an end."""

    def __init__(self, out: Path, disk: SmallDisk) -> None:
        self.out, self.disk = out, disk
        self.plan = (
            [("worker", k / 12) for k in (1, 3, 5, 8, 10)] + [("main", k / 12) for k in (4, 9)] + [("disk", 0.5)]
        )
        self.plan.sort(key=lambda accident: accident[1])
        self.log: list[str] = []
        self.killed: list[float] = []

    @property
    def over(self) -> bool:
        return not self.plan

    def watch(self, process: subprocess.Popen[bytes], count: int) -> int:
        """Until the main process ends, by itself or by our hand."""
        while process.poll() is None:
            time.sleep(0.1)
            entries = book.read(self.out)
            ended = sum(entry.status != book.STARTED for entry in entries)
            if self.plan and ended >= self.plan[0][1] * count:
                at_work = [entry for entry in entries if entry.status == book.STARTED]
                if self.plan[0][0] == "worker" and not at_work:
                    continue
                what, _ = self.plan.pop(0)
                if what == "main":
                    process.send_signal(signal.SIGKILL)
                    self.killed.append(time.time())
                elif what == "worker":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(at_work[0].worker.split("-")[-2]), signal.SIGKILL)
                        self.killed.append(time.time())
                elif self.disk.fill():
                    time.sleep(2.0)
                    self.disk.free()
                else:
                    continue
                self.log.append(what)
        return process.wait()


def judge(root: Path, out: Path, good: set[str], accidents: Accidents, runs: int, seconds: float) -> None:
    """What is left: every good scan whole, nothing half-written, nothing done twice."""
    setup = stub_setup(root, derivative_name=str(out), timeout=HANG_TIMEOUT)
    tasks = {t.name: t for t in make_plan(find_scans(root, [PAIR]), setup, Resume(resume=False)).todo}
    whole = set()
    for name in good:
        paths = Work(tasks[name]).job.paths
        record = read_record(paths["out_prov"])
        final = [paths[key] for key in ("out_spine", "out_vert", "out_ctd", "out_snap")]
        key = record.get("stages", {}).get("final", {}).get("key", "")
        if is_current(record, "final", key, final, paths["out_spine"].parent):
            whole.add(name)
    entries = {entry.scan: entry for entry in book.read(out)}
    lines = list(book.history(out))
    done = Counter(line.scan for line in lines if line.status == book.DONE)
    starts = Counter(line.scan for line in lines if line.status == book.STARTED)
    half = list(out.rglob(f"*{SUFFIX}"))
    final_status = Counter((entry.status, entry.code) for entry in entries.values())
    useful = sum(line.seconds for line in lines if line.status == book.DONE)
    lost = seconds_lost(lines)
    tell("faults", "scans", all=len(tasks), good=len(good), whole=len(whole), lost=len(good - whole))
    tell("faults", "done twice", scans=sum(n > 1 for n in done.values()), without_line=len(good - set(done)))
    tell("faults", "half-written files", files=len(half))
    full = (root / "main.log").read_text(encoding="utf-8", errors="replace").count(" failed WRITE ")
    tell("faults", "failed on the full disk, then done", scans=full)
    tell("faults", "accidents", **Counter(accidents.log), runs=runs)
    tell("faults", "started more than once", scans=sum(n > 1 for n in starts.values()), at_most=max(starts.values()))
    tell("faults", "seconds", wall=seconds, useful_work=useful, lost_with_killed_scans=lost)
    for (status, code), number in sorted(final_status.items()):
        tell("faults", f"ledger: {status} {code}", scans=number)
    wrong = {name for name, e in entries.items() if (e.status in book.FINISHED) != (name in good)}
    if good - whole or half or wrong or sum(n > 1 for n in done.values()):
        shutil.copy(root / "main.log", root.parent / "faults.log")
        raise SystemExit(f"not as it should be: {sorted(good - whole)} {half} {sorted(wrong)}")


def seconds_lost(lines: list[book.Entry]) -> float:
    """Time between the beginning of a scan and the accident that ended it."""
    lost = 0.0
    by_scan: dict[str, list[book.Entry]] = {}
    for line in lines:
        by_scan.setdefault(line.scan, []).append(line)
    for one in by_scan.values():
        one.sort(key=lambda line: (line.time, line.status != book.STARTED))
        for first, then in pairwise(one):
            if first.status == book.STARTED and then.status not in (book.DONE, book.ALREADY_DONE):
                lost += then.time - first.time if then.status != book.STARTED else 0.0
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="scratch space")
    parser.add_argument("--files", type=int, default=30_000, help="index")
    parser.add_argument("--scans", type=int, default=2_000, help="overhead, the schedule alone")
    parser.add_argument("--real", type=int, default=100, help="overhead and resume, stub networks with real files")
    parser.add_argument("--phantoms", type=int, default=4, help="throughput")
    parser.add_argument("--fault-scans", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--who", default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.getLogger("spineps").setLevel(logging.CRITICAL)
    folder = given.folder.absolute()
    if given.parts == ["_index"]:
        return index_child(folder, given.who)
    if given.parts == ["_main"]:
        return main_child(folder, given.out)
    for part in given.parts:
        if part == "index":
            index(folder, given.files)
        elif part == "overhead":
            overhead(folder, given.scans, given.real)
        elif part == "resume":
            resume(folder, given.real)
        elif part == "throughput":
            throughput(folder, given.phantoms)
        elif part == "faults":
            faults(folder, given.fault_scans)
        else:
            parser.error(f"there is no part {part!r}")
    if given.json is not None:
        given.json.write_text(json.dumps(ROWS, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
