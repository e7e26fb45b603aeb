"""``spineps dataset`` with what surrounds it, with models that know the answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from stubs import Oracle
from test_cli import run, scan, stub_models  # noqa: F401

from spineps.errors import ErrCode
from spineps.models.enums import Modality
from spineps.outputs import snapshot


@pytest.fixture
def bids(tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setattr(snapshot, "HEIGHT", 1.5)
    for name in ("sub-1/sub-1_T2w", "sub-2/ses-a/sub-2_ses-a_T2w", "sub-2/ses-b/sub-2_ses-b_T1w"):
        path = tmp_path / "set" / "rawdata" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copy(scan, path)
    (path.parent / "sub-2_ses-b_T2w.nii.gz").write_bytes(b"no")
    return tmp_path / "set"


def test_from_dry_run_to_status(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dataset", "-d", bids, "--dry-run", "-ms", "t2w") == 0
    shown = capsys.readouterr().out
    assert "4 to do" in shown and not (bids / "derivatives_seg").exists()
    assert run("dataset", "-d", bids, "--no-n4", "--session-label", "ses-b") == 1
    out = capsys.readouterr().out
    assert "2 scans: 1 processed, 0 done already, 1 failed" in out and "1 x UNREADABLE: <scan>" in out
    assert run("dataset", "-d", bids, "--no-n4", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [row["status"] for row in plan] == ["to do", "to do", "done already", "failed before"]
    assert run("dataset", "-d", bids, "--no-n4", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["seen"], answer["processed"], answer["already_done"], answer["failed"]) == (4, 2, 1, 1)
    assert run("dataset", "-d", bids, "--no-n4") == 1
    assert "not tried again: --retry-failed" in capsys.readouterr().out
    assert run("dataset", "status", bids, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"done": 3, "failed": 1} and status["failures"][0]["code"] == "UNREADABLE"
    assert run("dataset", "status", bids) == 0
    assert "3  done" in capsys.readouterr().out
    assert run("dataset", "status", bids / "rawdata") == ErrCode.NOT_FOUND.exit_code
    for part in (1, 2, 3, 4):  # an empty part is not an error
        assert run("dataset", "-d", bids, "--participant-label", "1", "--no-n4", "--shard", f"{part}/4") == 0
    assert run("dataset", "-d", bids, "--shard", "5/4") == ErrCode.OPTIONS.exit_code
    assert run("dataset") == 2


def test_a_list_and_doing_it_again(bids: Path, tmp_path: Path, stub_models: dict[str, object]) -> None:  # noqa: F811
    table = tmp_path / "scans.tsv"
    table.write_text("path\tage\nrawdata/sub-1/sub-1_T2w.nii.gz\t60\n")
    semantic = stub_models["semantic"]
    assert isinstance(semantic, Oracle)
    for more, calls in (([], 1), ([], 1), (["--verify"], 1), (["--no-resume"], 2)):
        assert run("dataset", "-d", bids, "--list", table, "--no-n4", *more) == 0
        assert semantic.calls == calls


def test_slurm_script(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("slurm-script", bids, "--slurm", "jobs=9,partition=long", "--no-n4", "-ml", "none") == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert "#SBATCH --array=1-9" in script and "--no-n4 -ml none" in script and "$SLURM_ARRAY_TASK_ID/9" in script
    assert run("slurm-script", bids, "--nonsense") == 2
    assert run("slurm-script", bids, "--slurm", "nonsense=1") == ErrCode.OPTIONS.exit_code


def test_ct_scans_get_the_ct_models(bids: Path, stub_models: dict[str, object]) -> None:  # noqa: F811
    run("dataset", "-d", bids, "--dry-run", "-ms", "t2w")
    assert stub_models["labeling name"] == "t2w_labeling"
    stub = stub_models["semantic"]
    assert isinstance(stub, Oracle)
    stub.config = replace(stub.config, modalities=(Modality.T2w, Modality.CT))
    run("dataset", "-d", bids, "--dry-run")
    assert (stub_models["labeling name"], stub_models["instance name"]) == ("ct_labeling", "ct_instance")
