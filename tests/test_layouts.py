"""The two layouts: names, re-use in both, and what the BIDS validator says."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from stubs import ByHeight, Oracle, spine

from spineps import Acquisition, ErrCode, Modality, process_dataset, segment
from spineps.cli.bids import spread
from spineps.cli.main import main
from spineps.dataset.report import report_group
from spineps.errors import InputNotFoundError, OptionError
from spineps.outputs import snapshot
from spineps.outputs.bids import label_table
from spineps.outputs.paths import bids_entities, output_paths, results_beside, scan_from
from spineps.phases.labeling import Naming

SCAN, TRUTH = spine(3)
QUICK = {"proc_sem_n4_bias_correction": False, "save_log_data": False}
VALIDATOR = shutil.which("bids-validator-deno")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "HEIGHT", 1.5)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(SCAN.array, SCAN.affine), path)
    return path


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two scans and one that cannot be read."""
    raw = tmp_path / "raw"
    save(raw / "sub-01" / "anat" / "sub-01_acq-sag_T2w.nii.gz")
    save(raw / "sub-02" / "ses-b" / "anat" / "sub-02_ses-b_sequ-301_acq-sag_run-1_chunk-2_T1w.nii.gz")
    (raw / "sub-03" / "anat").mkdir(parents=True)
    (raw / "sub-03" / "anat" / "sub-03_T2w.nii.gz").write_bytes(b"nonsense")
    return raw


def run(raw: Path, out: Path | str, **more: object) -> tuple[dict, Oracle]:
    semantic = Oracle(TRUTH)
    pairs = [(m, Acquisition.sag) for m in (Modality.T2w, Modality.T1w)]
    answer = process_dataset(
        raw, ByHeight(), semantic, rawdata_name=".", derivative_name=str(out), modalities=pairs, **QUICK, **more
    )
    return answer, semantic


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


NAMES = [
    ("sub-01_acq-sag_T2w", "sub-01/anat/sub-01_acq-sag_seg-vertebrae_desc-T2w_dseg.nii.gz"),
    ("sub-01_ses-2_ct", "sub-01/ses-2/anat/sub-01_ses-2_seg-vertebrae_desc-ct_dseg.nii.gz"),
    ("sub-x_chunk-HWS_run-2_T2w", "sub-x/anat/sub-x_run-2_seg-vertebrae_desc-T2wChunkHWS_dseg.nii.gz"),
    ("sub-x_chunk-1_run-2_T2w", "sub-x/anat/sub-x_run-2_chunk-1_seg-vertebrae_desc-T2w_dseg.nii.gz"),
    ("sub-x_part-inphase_vibe", "sub-x/anat/sub-x_seg-vertebrae_desc-vibePartinphase_dseg.nii.gz"),
    ("my scan.v2", "sub-myscanv2/anat/sub-myscanv2_seg-vertebrae_desc-scan_dseg.nii.gz"),
]


@pytest.mark.parametrize(("name", "mask"), NAMES)
def test_bids_names(tmp_path: Path, name: str, mask: str) -> None:
    scan = scan_from(tmp_path / f"{name}.nii.gz", dataset=tmp_path)
    paths = output_paths(scan, layout="bids")
    assert paths["out_vert"] == tmp_path / "derivatives" / "spineps" / mask
    assert output_paths(scan, "mine", layout="bids")["out_vert"] == tmp_path / "mine" / mask
    raw = output_paths(scan, layout="bids", work_folder=tmp_path / "w")["out_vert_raw"]
    assert raw.is_relative_to(tmp_path / "w")
    assert len(set(paths.values())) == len(paths) - 1  # only out_snap2 is out_snap


@pytest.mark.parametrize("layout", ["published", "bids"])
@pytest.mark.parametrize("name", [name for name, _ in NAMES])
def test_results_are_found_from_the_name_of_their_record(tmp_path: Path, name: str, layout: str) -> None:
    paths = output_paths(scan_from(tmp_path / f"{name}.nii.gz"), layout=layout)
    for key, path in results_beside(paths["out_prov"]).items():
        assert path == paths[key]


def test_scans_that_differ_have_names_that_differ() -> None:
    names = ["sub-1_T2w", "sub-1_T1w", "sub-1_sequ-1_T2w", "sub-1_sequ-2_T2w", "sub-1_acq-sag_T2w", "sub-1_run-2_T2w"]
    assert len({tuple(bids_entities(scan_from(n)).items()) for n in names}) == len(names)


def test_a_derivative_data_set_outside_of_the_scans(data_set: Path, tmp_path: Path) -> None:
    before, out = tree(data_set), tmp_path / "elsewhere" / "out"
    answer, semantic = run(data_set, out, layout="bids", work_folder=tmp_path / "work")
    assert (answer["processed"], answer["failed"]) == (2, 1) and semantic.calls == 2
    assert tree(data_set) == before
    written = tree(out)
    stem = "sub-02/ses-b/anat/sub-02_ses-b_acq-sag_run-1_chunk-2_seg-vertebrae_desc-T1wSequ301_dseg"
    assert {f"{stem}.nii.gz", f"{stem}.json", f"{stem}.tsv"} <= set(written)
    assert not any("Raw" in name for name in written) and list((tmp_path / "work").rglob("*Raw*"))
    sidecar = json.loads(written[f"{stem}.json"])
    raw = "bids:raw:sub-02/ses-b/anat/sub-02_ses-b_sequ-301_acq-sag_run-1_chunk-2_T1w.nii.gz"
    assert sidecar["Sources"] == [raw] and sidecar["SpatialReference"] == raw
    about = json.loads(written["dataset_description.json"])
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "spineps"
    assert (out / about["DatasetLinks"]["raw"]).resolve() == data_set.resolve()
    assert not any(str(tmp_path).encode() in text for name, text in written.items() if name.endswith("_prov.json"))
    assert not any(part.startswith("sub-03") for part in (p.name for p in out.iterdir()))


@pytest.mark.parametrize("layout", ["published", "bids"])
def test_both_layouts_are_used_again(tmp_path: Path, layout: str) -> None:
    raw = tmp_path / "raw"
    save(raw / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    out = tmp_path / "out"
    run(raw, out, layout=layout)
    first = {k: v for k, v in tree(out).items() if "ledger" not in k}
    answer, semantic = run(raw, out, layout=layout, verify=True)
    assert answer["already_done"] == 1 and semantic.calls == 0
    mask = next(p for p in out.rglob("*.nii.gz") if ("_seg-vert_" in p.name or "_seg-vertebrae_" in p.name))
    lost = mask.with_name(mask.name.replace(".nii.gz", ".tsv")) if layout == "bids" else mask
    lost.unlink()
    answer, semantic = run(raw, out, layout=layout)
    assert answer["processed"] == 1 and semantic.calls == 0  # from the raw masks
    again = {k: v for k, v in tree(out).items() if "ledger" not in k}
    records = [name for name in first if name.endswith("_prov.json")]
    assert {k: v for k, v in again.items() if k not in records} == {k: v for k, v in first.items() if k not in records}


def test_the_user_may_edit_the_description(tmp_path: Path) -> None:
    scan = save(tmp_path / "sub-1_T2w.nii.gz")
    how = {"model_semantic": Oracle(TRUTH), "model_instance": ByHeight(), "model_labeling": None, "layout": "bids"}
    result = segment(scan, **how, proc_sem_n4_bias_correction=False)
    assert result.errcode == ErrCode.OK and result.output_paths["out_vert_tsv"].is_file()
    root = tmp_path / "derivatives" / "spineps"
    (root / "dataset_description.json").write_text("mine")
    segment(scan, **how, proc_sem_n4_bias_correction=False, override=True)
    assert (root / "dataset_description.json").read_text() == "mine"
    with pytest.raises(OptionError):
        segment(scan, layout="mine")


def test_label_table_counts_and_names() -> None:
    array = np.zeros((4, 5, 6), np.uint16)
    array[0, 0, :3], array[1, 1, :2], array[2, 2, 2] = 20, 120, 26
    mask = SCAN.with_array(np.zeros(SCAN.shape, np.uint16))
    mask.array[:4, :5, :6] = array
    head, *rows = label_table(mask, True, Naming({1: 20}, {20: 0.75}))
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["index"] for row in table] == ["20", "26", "120"]
    assert [row["name"] for row in table] == ["L1", "sacrum", "disc below L1"]
    assert [row["volume_mm3"] for row in table] == ["9.0", "3.0", "6.0"]  # voxels of 1 x 1 x 3 mm
    assert [row["confidence"] for row in table] == ["0.7500", "n/a", "n/a"]
    assert [row["mapping"] for row in table] == ["4", "4", "n/a"]
    assert label_table(mask, True, None)[1][1] == "vertebra #20"  # numbered, not named


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed (it is in the dev extra)")
def test_the_validator_finds_no_error(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extras = {"save_uncertainty": True, "save_debug_data": True, "save_modelres_mask": True}
    run(data_set, out, layout="bids", **extras)
    report_group(out)
    assert (out / "group" / "index.html").is_file()

    def issues() -> list[dict]:
        done = subprocess.run([str(VALIDATOR), "--format", "json", str(out)], capture_output=True, check=False)
        return json.loads(done.stdout)["issues"]["issues"]

    found = issues()
    assert [issue for issue in found if issue["severity"] == "error"] == []
    # Only its owner knows who the authors of a data set are.
    assert {issue["code"] for issue in found} == {"TOO_FEW_AUTHORS"}
    (out / ".bidsignore").unlink()
    assert any(issue["severity"] == "error" for issue in issues())  # it does look at our files


def test_bids_app(data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(data_set, out, layout="bids")
    with pytest.raises(SystemExit) as end:
        main(["bids", str(data_set), str(out), "group"])
    assert end.value.code == 0
    assert "3 scans" in capsys.readouterr().out
    assert "sub-02_ses-b" in (out / "group" / "structures.tsv").read_text()
    with pytest.raises(SystemExit) as end:  # no dataset_description.json
        main(["bids", str(data_set), str(out), "participant"])
    assert end.value.code == InputNotFoundError("", "").code.exit_code
    assert "--skip-bids-validation" in capsys.readouterr().err


def test_commands_pass_on_what_they_were_given(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineps.cli import batch

    given: list[dict] = []

    def instead(folder: Path, names: object, how: object, reporter: object, **keywords: object) -> dict:
        given.append({"folder": folder, **keywords})
        return {"seen": 1, "processed": 1, "already_done": 0, "failed": 0, "failures": []}

    monkeypatch.setattr(batch, "run_dataset", instead)
    out = tmp_path / "out"
    labels = ["--participant_label", "01", "02", "--n-procs", "3", "-w", str(tmp_path / "w"), "--skip-bids-validation"]
    with pytest.raises(SystemExit) as end:
        main(["bids", str(data_set), str(out), "participant", *labels])
    assert end.value.code == 0
    wanted = {"folder": data_set, "layout": "bids", "derivative_name": str(out), "work_folder": tmp_path / "w"}
    wanted |= {"participant_label": ["01", "02"], "session_label": (), "workers": 3, "rawdata_name": "."}
    assert given[0].items() >= wanted.items()
    run(data_set, out, layout="bids")
    with pytest.raises(SystemExit) as end:
        main(["dataset", "-i", str(data_set), "-dn", str(out), "--layout", "bids", "--group"])
    assert end.value.code == 0 and given[1]["layout"] == "bids"
    assert "<h1>raw</h1>" in (out / "group" / "index.html").read_text()


def test_several_labels_after_one_option() -> None:
    given = ["bids", "--session-label", "a", "b", "--n-procs", "2", "in", "out", "group"]
    wanted = ["bids", "--session-label", "a", "--session-label", "b", "--n-procs", "2", "in", "out", "group"]
    assert spread(given) == wanted
    assert spread(["dataset", "--participant-label", "1", "2"]) == ["dataset", "--participant-label", "1", "2"]
