"""The tables of a data set: numbers, flags, what is read again and what is broken."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans_on_disk import LUMBAR, masks, write_scan

from spineps.anatomy import SACRUM, VERTEBRAE
from spineps.dataset.ledger import FOLDER, Entry, Ledger
from spineps.dataset.report import report_group, results_folder
from spineps.errors import InputNotFoundError
from spineps.outputs.group.flags import COHORT, FLAGS, Cohort, gaps, judge_rows, scan_flags
from spineps.outputs.group.measure import measure_scan
from spineps.outputs.group.table import SCANS, STRUCTURES, write_group


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ds" / "derivatives_seg"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def scans(group_root: Path) -> dict[str, dict[str, str]]:
    return {Path(row["scan"]).name.split("_")[0]: row for row in rows(group_root / "group" / "scans.tsv")}


def test_numbers_of_one_scan(root: Path) -> None:
    named = {"confidence": {"L1": 0.8}, "alternatives": {"L1": ["T12", 0.15]}}
    write_scan(root, "sub-1_ses-2_T2w", **named)
    write_group(root)
    table = rows(root / "group" / "structures.tsv")
    assert list(table[0]) == list(STRUCTURES)
    assert [row["name"] for row in table[:5]] == ["T11", "disc below T11", "T12", "disc below T12", "L1"]
    one = table[4]
    assert (one["participant_id"], one["session_id"], one["kind"], one["label"]) == ("sub-1", "ses-2", "vertebra", "20")
    assert (one["confidence"], one["alternative"], one["alternative_confidence"]) == ("0.8", "T12", "0.15")
    # 8 x 10 x 6 voxels of 12 mm3; the centre of the third body, through the affine by hand
    assert float(one["volume_mm3"]) == float(one["body_volume_mm3"]) == 480 * 12
    index = np.array([4 + 3.5, 3 + 22 + 4.5, 2 + 2.5])
    centre = [3 * index[2] - 15, 40 - 2 * index[0], 200 - 2 * index[1]]
    assert [float(one[axis]) for axis in ("x_mm", "y_mm", "z_mm")] == pytest.approx(centre, abs=0.01)
    assert one["cut"] == one["cohort_z"] == one["flags"] == "n/a" and float(one["neighbour_ratio"]) == 1
    sidecar = json.loads((root / "group" / "structures.json").read_text())
    assert set(sidecar) == set(table[0]) and all(about["Description"] for about in sidecar.values())
    whole = json.loads((root / "group" / "scans.json").read_text())
    assert set(SCANS) <= set(whole) and set(whole["FlagRules"]) == {flag.code for flag in FLAGS}


FLAGGED: list[tuple[str, dict[str, Any], str]] = [
    ("good", {}, "n/a"),
    ("empty", {"pair": masks(())}, "empty"),
    ("few", {"pair": masks((23, 24, SACRUM))}, "few"),
    ("gap", {"pair": masks((18, 19, 20, 22, 23, 24, SACRUM))}, "gap"),
    ("half", {"pair": masks(heights={21: 5})}, "volume"),
    ("unsure", {"confidence": {"L1": 0.49}}, "unsure"),
    ("ambiguous", {"ambiguous": True}, "ambiguous"),
    ("cut", {"pair": masks(front=0)}, "cut"),
    ("sides", {"pair": masks(wide=(SACRUM,))}, "n/a"),
    ("edge", {"pair": masks(ragged=21)}, "n/a"),
    ("wide", {"pair": masks(wide=(22,))}, "cut"),
    ("unnamed", {"confidence": None, "pair": masks((2, 3, 4, 5, 6, SACRUM))}, "unnamed"),
]


def test_every_flag_and_no_other(root: Path) -> None:
    for name, how, _ in FLAGGED:
        write_scan(root, f"sub-{name}_T2w", how.pop("pair", None), **how)
    found = write_group(root)
    assert {name: row["flags"] for name, row in scans(root).items()} == {f"sub-{n}": flag for n, _, flag in FLAGGED}
    assert found.flags == {**{flag.code: 1 for flag in FLAGS[3:]}, "cut": 2}
    odd = [row for row in rows(root / "group" / "structures.tsv") if row["flags"] != "n/a"]
    assert {row["name"] for row in odd if "sub-half" in row["scan"]} == {"L2"} and odd[0]["flags"] == "neighbours"
    touched = {name: row["touches"] for name, row in scans(root).items() if row["touches"] != "n/a"}
    assert touched == {"sub-cut": "A", "sub-sides": "RL", "sub-wide": "RL"}


def test_cohort_finds_the_scan_that_is_odd_as_a_whole(root: Path) -> None:
    for n in range(COHORT):
        write_scan(root, f"sub-{n:02d}_T2w")
    # All bodies half as tall: neighbours see nothing, the other scans do.
    write_scan(root, "sub-small_T2w", masks(heights=dict.fromkeys(LUMBAR, 5)))
    write_group(root)
    found = scans(root)
    assert found.pop("sub-small")["flags"] == "volume"
    assert {row["flags"] for row in found.values()} == {"n/a"}
    small = [row for row in rows(root / "group" / "structures.tsv") if "small" in row["scan"]]
    assert float(small[2]["cohort_z"]) == pytest.approx(np.log(0.5) / 0.05, abs=0.01)  # least spread is 5 %


def test_only_what_changed_is_measured_again(root: Path) -> None:
    paths = [write_scan(root, f"sub-{n}_T2w") for n in range(4)]
    assert write_group(root).measured == 4
    folder = root / "group"
    first = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert write_group(root).measured == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == first
    thumbs = sorted((folder / "thumbs").iterdir())
    thumbs[0].unlink()
    assert write_group(root).measured == 0 and thumbs[0].is_file()
    mask = paths[1]["out_vert"]
    os.utime(mask, ns=(0, mask.stat().st_mtime_ns + 1))
    assert write_group(root).measured == 1
    # A record with another key counts, though size and times be the same.
    record = paths[2]["out_prov"]
    times = record.stat().st_mtime_ns
    record.write_text(record.read_text().replace('"key": "k"', '"key": "l"'))
    os.utime(record, ns=(times, times))
    assert write_group(root).measured == 1
    # A cache that was cut in the middle of a line costs that line.
    cache = folder / "cache.jsonl"
    cache.write_bytes(cache.read_bytes()[:-40])
    assert write_group(root).measured == 1
    for path in paths[3].values():
        path.unlink(missing_ok=True) if not path.is_dir() else None
    assert write_group(root).scans == 3 and len(list((folder / "thumbs").iterdir())) == 3


def test_threads_give_the_same_bytes(root: Path) -> None:
    for n in range(9):
        write_scan(root, f"sub-{n}_T2w")
    write_group(root, threads=1)
    one = (root / "group" / "structures.tsv").read_bytes()
    (root / "group" / "cache.jsonl").unlink()
    write_group(root, threads=4)
    assert (root / "group" / "structures.tsv").read_bytes() == one


def garbage(kind: str, paths: dict[str, Path]) -> None:
    if kind == "points":
        paths["out_ctd"].write_text("[1, [2]]")
    elif kind == "missing":
        paths["out_vert"].unlink()
    elif kind == "cut":
        paths["out_vert"].write_bytes(paths["out_vert"].read_bytes()[:-200])
    elif kind == "text":
        paths["out_spine"].write_bytes(b"no image")
    elif kind == "shape":
        paths["out_spine"].write_bytes(paths["out_vert"].read_bytes())
        semantic, _ = masks((20,))
        import nibabel as nib

        nib.save(nib.Nifti1Image(semantic.array, semantic.affine), paths["out_spine"])
    elif kind == "record":
        paths["out_prov"].write_text('{"format":')
    else:
        paths["out_snap"].write_bytes(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("kind", ["points", "missing", "cut", "text", "shape", "record"])
def test_broken_results_are_told_and_end_nothing(root: Path, kind: str) -> None:
    write_scan(root, "sub-1_T2w")
    garbage(kind, write_scan(root, "sub-2_T2w"))
    assert write_group(root).scans == 2
    broken = scans(root)["sub-2"]
    assert broken["status"] == broken["flags"] == "broken" and broken["message"] != "n/a"
    assert str(root) not in broken["message"]
    assert {row["scan"] for row in rows(root / "group" / "structures.tsv")} == {"rawdata/sub-1_T2w.nii.gz"}


def test_a_broken_picture_costs_only_the_thumbnail(root: Path) -> None:
    garbage("picture", write_scan(root, "sub-1_T2w"))
    write_group(root)
    assert scans(root)["sub-1"]["status"] == "done"


def test_failed_scans_come_from_the_ledger(root: Path) -> None:
    paths = write_scan(root, "sub-1_T2w")
    write_scan(root, "sub-2_T2w")
    record = json.loads(paths["out_prov"].read_text())
    del record["stages"]["final"]
    write_scan(root, "sub-3_T2w")["out_prov"].write_text(json.dumps(record | {"input": {"name": "sub-3_T2w.nii.gz"}}))
    ledger = Ledger(root / FOLDER)
    where = root.parent / "rawdata" / "sub-4_T2w.nii.gz"
    ledger.write(Entry("rawdata/sub-4_T2w.nii.gz", "failed", code="UNREADABLE", message=f"{where} is\ttorn.\nCopy it."))
    ledger.write(Entry("rawdata/sub-1_T2w.nii.gz", "failed", code="WRITE", message="disk full"))
    ledger.write(Entry("rawdata/sub-2_T2w.nii.gz", "failed", code="WRITE"))
    ledger.write(Entry("rawdata/sub-2_T2w.nii.gz", "done", code="OK"))
    report_group(root.parent)
    found = scans(root)
    assert {name: row["status"] for name, row in found.items()} == {
        "sub-1": "failed", "sub-2": "done", "sub-3": "unfinished", "sub-4": "failed",
    }  # fmt: skip
    assert found["sub-4"]["message"] == "sub-4_T2w.nii.gz is torn. Copy it."
    assert {row["participant_id"] for row in rows(root / "group" / "structures.tsv")} == {"sub-2"}


def test_results_are_found(tmp_path: Path) -> None:
    write_scan(tmp_path / "ds" / "mine", "sub-1_T2w", layout="bids")
    assert results_folder(tmp_path / "ds", "mine") == tmp_path / "ds" / "mine"
    assert results_folder(tmp_path / "ds" / "mine") == tmp_path / "ds" / "mine"
    assert report_group(tmp_path / "ds" / "mine").scans == 1
    with pytest.raises(InputNotFoundError):
        report_group(tmp_path / "nothing")


@given(st.integers(0, len(VERTEBRAE)), st.integers(0, len(VERTEBRAE)))
def test_a_run_of_the_spine_has_no_gap_and_one_without_an_inner_vertebra_has(start: int, stop: int) -> None:
    order = (*VERTEBRAE, SACRUM)
    run = order[start : stop + 1]
    assert gaps(run) == []
    may_miss = {19, 28, 24, 25}
    for k in range(1, len(run) - 1):
        assert (gaps(run[:k] + run[k + 1 :]) == []) == (run[k] in may_miss)


@given(st.floats(0.2, 5), st.lists(st.floats(0.8, 1.25), min_size=COHORT, max_size=COHORT))
def test_the_cohort_does_not_care_for_units(scale: float, sizes: list[float]) -> None:
    def judged(factor: float) -> list[float]:
        cohort = Cohort()
        many = [
            {"named": True, "rows": [{"kind": "vertebra", "label": 20, "cut": "", "body": 9000 * s * factor}]}
            for s in sizes
        ]
        for scan in many:
            cohort.add(scan)
        for scan in many:
            judge_rows(scan, cohort)
        return [scan["rows"][0]["z"] for scan in many]

    assert judged(scale) == pytest.approx(judged(1.0), abs=1e-3)


def test_unnamed_vertebrae_are_not_compared_with_other_scans(root: Path) -> None:
    paths = write_scan(root, "sub-1_T2w", confidence=None)
    scan = measure_scan(paths["out_prov"])
    cohort = Cohort()
    cohort.add(scan)
    judge_rows(scan, cohort)
    assert scan["rows"][0]["name"] == "#18" and all(row["z"] is None for row in scan["rows"])
    assert scan_flags(scan) == ["unnamed"]
