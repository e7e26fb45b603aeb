"""Finding scans, the ledger, and what a run makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quick_runner import PAIR, Named, scans, setup

from spineps import Acquisition, Modality
from spineps.dataset import ledger as book
from spineps.dataset import memory
from spineps.dataset.find import find_scans, listed_scans
from spineps.dataset.ledger import Entry, Ledger
from spineps.dataset.plan import Plan, Resume, explained, in_shard, make_plan, parse_shard
from spineps.dataset.schedule import Stop, run
from spineps.dataset.status import dataset_status
from spineps.dataset.worker import Setup
from spineps.errors import InputNotFoundError, OptionError, OutputError
from spineps.pipeline import Models

T1W = (Modality.T1w, Acquisition.sag)
AS_EVER = Resume()


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / "rawdata" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(root: Path, **how: object) -> list[str]:
    return [s.path.relative_to(root / "rawdata").as_posix() for s, _ in find_scans(root, [PAIR], **how).scans]  # type: ignore


def why(root: Path, **how: object) -> dict[str, str]:
    return {path.name: reason for path, reason in find_scans(root, [PAIR], **how).left_out}  # type: ignore


class TestFinding:
    """Which files are scans."""

    def test_the_answer_is_that_of_tptbox_on_an_ordinary_tree(self, tmp_path: Path) -> None:
        from TPTBox import BIDS_Global_info

        touch(
            tmp_path,
            "sub-1/sub-1_T2w.nii.gz",
            "sub-1/sub-1_acq-sag_T2w.nii.gz",
            "sub-1/sub-1_acq-ax_T2w.nii.gz",
            "sub-1/sub-1_acq-sagittal_run-2_T2w.nii",
            "sub-1/sub-1_T1w.nii.gz",
            "sub-1/sub-1_seg-vert_msk.nii.gz",
            "sub-1/sub-1_seg-vert_T2w.nii.gz",
            "sub-1/sub-1_label-x_T2w.nii.gz",
            "sub-1/sub-1_lesions-x_T2w.nii.gz",
            "sub-1/sub-1_T2w.json",
            "sub-2/ses-1/sub-2_ses-1_part-inphase_dixon.nii.gz",
            "sub-2/ses-1/sub-2_ses-1_part-water_dixon.nii.gz",
            "sub-2/ses-1/sub-2_ses-1_rec-OPP_dixon.nii.gz",
            "sub-2/ses-1/sub-2_ses-1_run-3_dixon.nii.gz",
            "sub-2/ses-1/sub-2_ses-1_run-4_dixon.nii.gz",
            "sub-3/anat/sub-3_t2.nii.gz",
            "sub-3/anat/sub-3_ct.nii.gz",
            "odd_T2w.nii.gz",
        )
        for number, kind in ((3, "W"), (4, "IP")):
            sidecar = tmp_path / "rawdata" / "sub-2" / "ses-1" / f"sub-2_ses-1_run-{number}_dixon.json"
            sidecar.write_text(json.dumps({"ImageType": ["DERIVED", kind]}))
        (tmp_path / "rawdata/sub-1/sub-1_T2w.json").write_text("{}")
        theirs = []
        for label, one in BIDS_Global_info([tmp_path], ["rawdata"], verbose=False).iter_subjects(sort=True):
            query = one.new_query(flatten=True)
            query.filter_filetype(["nii.gz", "nii"])
            for key in ("seg", "label", "lesions"):
                query.filter_non_existence(key)
            query.filter_format(list(Modality.T2w.format_keys))
            query.filter("acq", lambda value: value in Acquisition.sag.format_keys, required=False)
            query.filter_dixon_only_inphase()
            theirs += [str(f.get_nii_file()) for f in query.loop_list() if label != "unsorted"]
        assert sorted(theirs) == sorted(str(tmp_path / "rawdata" / name) for name in names(tmp_path))
        assert len(theirs) == 6

    def test_where_tptbox_loses_scans(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1/a/sub-1_T2w.nii.gz", "sub-1/b/sub-1_T2w.nii.gz", "sub-2/sub-2_desc-v1.5_T2w.nii.gz")
        (tmp_path / "elsewhere" / "sub-3").mkdir(parents=True)
        (tmp_path / "elsewhere" / "sub-3" / "sub-3_T2w.nii.gz").touch()
        (tmp_path / "rawdata" / "sub-3").symlink_to(tmp_path / "elsewhere" / "sub-3")
        assert len(names(tmp_path)) == 4

    def test_links(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1/sub-1_T2w.nii.gz")
        folder = tmp_path / "rawdata" / "sub-1"
        (folder / "up").symlink_to("..")
        (tmp_path / "rawdata" / "sub-9").symlink_to("sub-1")
        (folder / "sub-1_run-2_T2w.nii.gz").symlink_to("sub-1_T2w.nii.gz")
        (folder / "sub-1_run-3_T2w.nii.gz").symlink_to("not-fetched")
        (tmp_path / "store").touch()
        (folder / "sub-1_run-4_T2w.nii.gz").symlink_to("../../store")
        assert names(tmp_path) == ["sub-1/sub-1_T2w.nii.gz", "sub-1/sub-1_run-4_T2w.nii.gz"]
        reasons = why(tmp_path)
        assert reasons["sub-1_run-2_T2w.nii.gz"] == "is a link to sub-1_T2w.nii.gz"
        assert "not there" in reasons["sub-1_run-3_T2w.nii.gz"]

    def test_a_folder_that_may_not_be_read_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "sub-1/sub-1_T2w.nii.gz", "sub-2/sub-2_T2w.nii.gz")
        real = os.scandir

        def scandir(path: Path) -> object:
            if Path(path).name == "sub-2":
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        assert names(tmp_path) == ["sub-1/sub-1_T2w.nii.gz"]
        assert why(tmp_path) == {"sub-2": "cannot be read (Permission denied)"}

    def test_subjects_and_sessions(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for sub in "123":
            for ses in "ab":
                touch(tmp_path, f"sub-{sub}/ses-{ses}/sub-{sub}_ses-{ses}_T2w.nii.gz", f"sub-{sub}_ses-{ses}_T2.nii")
        assert len(names(tmp_path)) == 12
        assert len(names(tmp_path, participants=["sub-1", "3"])) == 8
        assert names(tmp_path, participants=("2",), sessions=("ses-b",)) == [
            "sub-2/ses-b/sub-2_ses-b_T2w.nii.gz",
            "sub-2_ses-b_T2.nii",
        ]
        assert names(tmp_path, participants=["7"]) == [] and "participant 7" in caplog.text

    def test_reasons(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1_T1w.nii.gz", "sub-1_acq-ax_T2w.nii.gz", "sub-1_seg-x_T2w.nii.gz", "odd_T2w.nii.gz")
        assert why(tmp_path) == {
            "sub-1_T1w.nii.gz": "is T1w: T2w is wanted",
            "sub-1_acq-ax_T2w.nii.gz": "has acq-ax: sag is wanted",
            "sub-1_seg-x_T2w.nii.gz": "has a seg- key: a mask",
            "odd_T2w.nii.gz": "has no subject (sub-...) in its name",
        }
        assert list(why(tmp_path, ignore_bids_filter=True)) == ["sub-1_seg-x_T2w.nii.gz"]

    def test_each_scan_goes_to_the_pair_of_its_modality(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", "what.nii.gz")
        for anything in (False, True):
            found = find_scans(tmp_path, [PAIR, T1W], ignore_bids_filter=anything)
            by_name = {scan.path.name: pair for scan, pair in found.scans}
            assert (by_name["sub-1_T1w.nii.gz"], by_name["sub-1_T2w.nii.gz"]) == (T1W, PAIR)
            assert by_name.get("what.nii.gz") == (PAIR if anything else None)

    def test_a_list(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1/sub-1_T2w.nii.gz", "sub-2/sub-2_ct.nii.gz", "sub-3/sub-3_seg-x_T2w.nii.gz")
        for sub in "ab":
            (tmp_path / "out" / sub).mkdir(parents=True)
            (tmp_path / "out" / sub / "scan.nii").touch()
        table = tmp_path / "lists" / "scans.tsv"
        table.parent.mkdir()
        rows = [
            ("path", "age"),
            ("rawdata/sub-1/sub-1_T2w.nii.gz", "60"),
            ("rawdata/sub-1/sub-1_T2w.nii.gz", "60"),
            ("rawdata/sub-2/sub-2_ct.nii.gz", "61"),
            (str(tmp_path / "out/a/scan.nii"), "62"),
            ("../out/b/scan.nii", "63"),
        ]
        table.write_text("\n".join("\t".join(row) for row in rows))
        found = listed_scans(table, tmp_path, [PAIR])
        assert [reason for _, reason in found.left_out] == ["is listed twice", "is ct: no model was asked for"]
        plan = make_plan(found, setup(tmp_path))
        assert [t.name for t in plan.todo] == ["rawdata/sub-1/sub-1_T2w.nii.gz", "out/a/scan.nii", "out/b/scan.nii"]
        assert [dict(task.extra) for task in plan.todo] == [{"age": "60"}, {"age": "62"}, {"age": "63"}]
        table.write_text("file\nx")
        with pytest.raises(OptionError, match="no column 'path'"):
            listed_scans(table, tmp_path, [PAIR])
        with pytest.raises(InputNotFoundError):
            listed_scans(tmp_path / "none.tsv", tmp_path, [PAIR])


class TestLedger:
    """Many writers, torn lines, the last word."""

    def test_the_last_word_counts(self, tmp_path: Path) -> None:
        one, two = Ledger(tmp_path / book.FOLDER), Ledger(tmp_path / book.FOLDER)
        one.write(Entry("a", book.STARTED))
        two.write(Entry("b", book.FAILED, code="EMPTY"))
        one.write(Entry("a", book.DONE, code="OK", outputs={"out_spine": ["../x", 1, 2]}))
        a, b = book.read(tmp_path)
        assert book.read(tmp_path / book.FOLDER) == [a, b]
        assert (a.status, b.code) == (book.DONE, "EMPTY") and a.worker != b.worker
        assert a.paths(tmp_path / "d") == {"out_spine": tmp_path / "x"}
        assert len(list(book.history(tmp_path))) == 3

    def test_torn_and_foreign_lines_are_ignored(self, tmp_path: Path) -> None:
        folder = tmp_path / book.FOLDER
        ledger = Ledger(folder)
        ledger.write(Entry("a", book.DONE, code="OK", message="ünïcode"))
        (path,) = folder.iterdir()
        whole = path.read_bytes()
        for cut in range(len(whole)):
            (folder / "torn.jsonl").write_bytes(b'[1]\nnull\n{"scan": 5}\n\xff\n' + whole[:cut])
            assert [e.scan for e in book.read(tmp_path)] == ["a"]

    def test_after_a_full_disk_the_next_line_is_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ledger, real = Ledger(tmp_path / book.FOLDER), os.write
        ledger.write(Entry("a", book.DONE))
        monkeypatch.setattr(os, "write", lambda handle, text: real(handle, text[:10]))
        with pytest.raises(OutputError, match="No space left"):
            ledger.write(Entry("b", book.DONE))
        monkeypatch.undo()
        ledger.write(Entry("c", book.DONE))
        assert [e.scan for e in book.read(tmp_path)] == ["a", "c"]

    def test_many_writers_at_once(self, tmp_path: Path) -> None:
        code = """
import sys
from pathlib import Path
from spineps.dataset.ledger import Entry, Ledger
ledger = Ledger(Path(sys.argv[1]))
for n in range(400):
    ledger.write(Entry(f"{sys.argv[2]}-{n}", "done", message="x" * n))
"""
        folder = tmp_path / book.FOLDER
        writers = [subprocess.Popen([sys.executable, "-c", code, str(folder), name]) for name in "ab"]
        shared = Ledger(folder)
        threads = [
            threading.Thread(target=lambda k=k: [shared.write(Entry(f"t{k}-{n}", "done")) for n in range(300)])
            for k in range(3)
        ]
        for thread in threads:
            thread.start()
        while any(w.poll() is None for w in writers):
            book.read(tmp_path)  # reading never disturbs
        assert [w.wait() for w in writers] == [0, 0]
        for thread in threads:
            thread.join()
        assert len(book.read(tmp_path)) == 2 * 400 + 3 * 300 and len(list(folder.iterdir())) == 3

    def test_what_was_started_by_a_dead_process_has_crashed(self, tmp_path: Path) -> None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        folder = tmp_path / book.FOLDER
        mine = Ledger(folder)
        mine.write(Entry("mine", book.STARTED))
        gone = f"{book._host()}-{child.pid}-1"
        far, silent = "far-away-1-1", "far-away-2-1"
        for worker in (gone, far, silent):
            line = json.dumps({"scan": worker, "status": "started", "time": 1.0, "worker": worker})
            (folder / f"{worker}.jsonl").write_text(line + "\n")
        os.utime(folder / f"{silent}.jsonl", (time.time() - 2 * book.SILENCE,) * 2)
        status = {e.scan: e.status for e in book.read(tmp_path)}
        assert status == {"mine": book.STARTED, gone: book.CRASHED, far: book.STARTED, silent: book.CRASHED}

    def test_a_beating_heart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(book, "HEARTBEAT", 0.02)
        Ledger(tmp_path).write(Entry("a", book.STARTED))
        (path,) = tmp_path.iterdir()
        os.utime(path, (1, 1))
        deadline = time.time() + 5
        while path.stat().st_mtime < 2 and time.time() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2


def go(root: Path, how: Resume = AS_EVER, **changes: object) -> tuple[Plan, dict[str, Entry]]:
    """Plan and run in this process."""
    this = setup(root, **changes)
    plan = make_plan(find_scans(root, [PAIR]), this, how)
    with Stop() as stop:
        return plan, {Path(e.scan).name[4:5]: e for e in run(plan, this, how, stop)}


class TestResume:
    """What the ledger saves, and what it must not hide."""

    def test_done_scans_are_known_without_being_read(self, tmp_path: Path) -> None:
        scans(tmp_path, {"1": "good", "2": "good"})
        _, first = go(tmp_path)
        assert {e.status for e in first.values()} == {book.DONE}
        scan = tmp_path / "rawdata/sub-1/sub-1_T2w.nii.gz"
        times = scan.stat().st_atime_ns, scan.stat().st_mtime_ns
        scan.write_text("GOOD")  # the same size and time: no one can tell without reading it
        os.utime(scan, ns=times)
        plan, again = go(tmp_path)
        assert len(plan.finished) == 2 and not again
        plan, again = go(tmp_path, Resume(verify=True))
        assert len(plan.todo) == 2 and len(again) == 2

    @pytest.mark.parametrize("what", ["input", "output", "missing", "options", "model"])
    def test_whatever_changes_is_looked_at_again(self, tmp_path: Path, what: str) -> None:
        scans(tmp_path, {"1": "good", "2": "good"})
        _, first = go(tmp_path)
        changes: dict[str, object] = {}
        output = first["1"].paths(tmp_path / "derivatives_seg")["out_spine"]
        if what == "input":
            (tmp_path / "rawdata/sub-1/sub-1_T2w.nii.gz").write_text("good again")
        elif what == "output":
            output.write_text("half")
        elif what == "missing":
            output.unlink()
        elif what == "options":
            changes["ignore_compatibility"] = True
        else:
            changes["models"] = (Models(Named("other"), Named(), None),)  # type: ignore[arg-type]
        plan, _ = go(tmp_path, **changes)
        both = what in ("options", "model")
        assert [task.scan.entities["sub"] for task in plan.todo] == (["1", "2"] if both else ["1"])

    def test_failures_are_not_tried_again_unless_wanted(self, tmp_path: Path) -> None:
        scans(tmp_path, {"1": "bad", "2": "boom", "3": "good"})
        _, first = go(tmp_path)
        assert {k: (e.status, e.code) for k, e in first.items()} == {
            "1": (book.FAILED, "VALUES"),
            "2": (book.FAILED, "UNKNOWN"),
            "3": (book.DONE, "OK"),
        }
        assert "ZeroDivisionError: boom" in first["2"].message
        plan, again = go(tmp_path)
        assert len(plan.failed) == 2 and not plan.todo and not again
        plan, again = go(tmp_path, Resume(retry_failed=True))
        assert len(again) == 2 and {e.attempt for e in again.values()} == {2}
        scans(tmp_path, {"1": "good now"})
        plan, again = go(tmp_path)
        assert (again["1"].status, again["1"].attempt) == (book.DONE, 1)

    @pytest.mark.parametrize(("code", "attempt", "again"), [
        ("MEMORY", 1, True), ("MEMORY", 2, False), ("CRASHED", 1, True), ("CRASHED", 2, True), ("CRASHED", 3, False),
        ("WRITE", 7, True), ("TIMEOUT", 1, False), ("UNREADABLE", 1, False),
    ])  # fmt: skip
    def test_what_may_be_bad_luck_is_tried_once_more(
        self, tmp_path: Path, code: str, attempt: int, again: bool
    ) -> None:
        scans(tmp_path, {"1": "good"})
        this = setup(tmp_path)
        (task,) = make_plan(find_scans(tmp_path, [PAIR]), this).todo
        status = task.scan.path.stat()
        mark = (status.st_size, status.st_mtime_ns)
        kind = book.CRASHED if code == "CRASHED" else book.FAILED
        Ledger(this.ledger).write(replace(task, attempt=attempt).entry(kind, code=code, input=mark))
        plan = make_plan(find_scans(tmp_path, [PAIR]), this)
        assert [t.attempt for t in plan.todo] == ([attempt + 1] if again else [])
        assert len(plan.failed) == (not again)

    def test_two_scans_with_the_same_output_names(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub-1_T2w.nii", "sub-1_T2w.nii.gz")
        plan = make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path))
        assert len(plan.todo) == 1 and "same output names" in plan.left_out[0][1]

    def test_a_scan_in_other_hands_is_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spineps.dataset.schedule.PATIENCE", 0.05)
        scans(tmp_path, {"1": "good", "2": "good"})
        this = setup(tmp_path)
        first = make_plan(find_scans(tmp_path, [PAIR]), this).todo[0]
        other = tmp_path / "derivatives_seg" / book.FOLDER / "far-1-1.jsonl"
        other.parent.mkdir(parents=True)
        line = {"scan": first.name, "status": "started", "time": time.time(), "worker": "far-1-1"}
        other.write_text(json.dumps(line) + "\n")
        plan = make_plan(find_scans(tmp_path, [PAIR]), this)
        assert (len(plan.todo), len(plan.claimed)) == (1, 1)
        threading.Timer(0.3, lambda: os.utime(other, (1, 1))).start()  # it falls silent
        with Stop() as stop:
            assert len(list(run(plan, this, Resume(), stop))) == 2


label = st.text("abcdefgh0123456789-_/.", min_size=1, max_size=30)


@given(st.sets(label, max_size=40), st.sets(label, max_size=10), st.integers(1, 12))
def test_shards_are_disjoint_complete_and_stable(old: set[str], new: set[str], n: int) -> None:
    parts = [{name for name in old if in_shard(name, k, n)} for k in range(1, n + 1)]
    assert sum(map(len, parts)) == len(old) and set().union(*parts) == old
    more = [{name for name in old | new if in_shard(name, k, n)} for k in range(1, n + 1)]
    assert all(part <= bigger for part, bigger in zip(parts, more, strict=True))


def test_shards_are_even_and_known_by_name() -> None:
    sizes = Counter(next(k for k in range(1, 9) if in_shard(f"rawdata/sub-{n:05d}", k, 8)) for n in range(4000))
    assert max(sizes.values()) - min(sizes.values()) < 120
    assert parse_shard("3/16") == (3, 16)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4"):
        with pytest.raises(OptionError):
            parse_shard(wrong)


def test_a_shard_only_sees_its_part(tmp_path: Path) -> None:
    scans(tmp_path, {f"{n:02d}": "good" for n in range(20)})
    plans = [make_plan(find_scans(tmp_path, [PAIR]), setup(tmp_path), shard=(k, 3)) for k in (1, 2, 3)]
    assert sum(plan.seen for plan in plans) == 20 and all(plan.seen for plan in plans)


def test_status(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        dataset_status(tmp_path)
    scans(tmp_path, {"1": "good", "2": "bad", "3": "bad"})
    _, entries = go(tmp_path)
    Ledger(tmp_path / "derivatives_seg" / book.FOLDER).write(Entry("x", book.STARTED))
    status = dataset_status(tmp_path / "derivatives_seg")
    assert status["counts"] == {"done": 1, "failed": 2, "started": 1} and status["scans"] == 4
    assert status["failures"] == [{"code": "VALUES", "message": "<scan> holds colours. Convert it.", "count": 2}]
    assert status["running"][0]["scan"] == "x" and status["scans_per_hour"] > 0 and status["peak_mb"] > 1
    assert sum(explained(list(entries.values())).values()) == 3


def test_memory_that_a_scan_needs(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    for kind, name in ((nib.Nifti1Image, "a.nii.gz"), (nib.Nifti2Image, "b.nii")):
        nib.save(kind(np.zeros((20, 30, 40), np.int16), np.eye(4)), tmp_path / name)
        assert memory.estimated_need(tmp_path / name) == memory.BASE_BYTES + 24000 * memory.BYTES_PER_VOXEL
    (tmp_path / "c.nii.gz").write_bytes(b"\x1f\x8bno")
    for name in ("c.nii.gz", "none.nii"):
        assert memory.estimated_need(tmp_path / name) == memory.BASE_BYTES
    assert memory.cores() >= 1 and memory.peak_mb() > 1


def test_packing_leaves_networks_behind(tmp_path: Path) -> None:
    import pickle
    from types import MappingProxyType

    from spineps.models.registry import get_instance_model, get_semantic_model

    assert pickle.loads(pickle.dumps(MappingProxyType({1: 2})))[1] == 2
    semantic = get_semantic_model("t2w", use_cpu=True)
    semantic.__dict__["network"] = threading.Lock()  # something that cannot travel
    this = Setup(tmp_path, (PAIR,), (Models(semantic, get_instance_model()),))
    copy = pickle.loads(this.packed(threads=3)).models[0]
    assert "network" not in copy.semantic.__dict__ and copy.semantic.threads == 3
    assert copy.semantic.fingerprint == semantic.fingerprint and dict(copy.semantic.config.labels)
