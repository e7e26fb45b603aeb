"""The command line, with models that know the answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pytest
from stubs import ByHeight, Oracle, spine

from spineps.cli.main import main
from spineps.errors import ErrCode, ModelError
from spineps.outputs import snapshot

HEAVY = ("torch", "openvino", "matplotlib", "scipy", "SimpleITK", "TPTBox", "nibabel", "cc3d", "pandas", "numpy")
SCAN, TRUTH = spine(3)


@pytest.fixture(autouse=True)
def stub_models(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """``get_*_model`` answer with oracles and remember what they were asked for."""
    asked: dict[str, object] = {"semantic": Oracle(TRUTH), "instance": ByHeight()}

    def get(phase: str):  # type: ignore[no-untyped-def]
        def answer(name: str = "default", **how: object) -> object:
            asked[f"{phase} name"], asked[f"{phase} how"] = name, how
            return asked.get(phase)

        return answer

    for phase in ("semantic", "instance", "labeling"):
        monkeypatch.setattr(f"spineps.models.registry.get_{phase}_model", get(phase))
        monkeypatch.setattr(f"spineps.cli.batch.get_{phase}_model", get(phase))
    monkeypatch.setattr(snapshot, "HEIGHT", 1.5)
    return asked


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "sub-x_T2w.nii.gz"
    nib.save(nib.Nifti1Image(SCAN.array, SCAN.affine), path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_no_stats_leaves_the_table_out(scan: Path, stub_models: dict[str, object]) -> None:
    assert run("sample", "-i", scan, "--no-stats") == 0
    assert list(scan.parent.rglob("*_seg-vert_msk.nii.gz")) and not list(scan.parent.rglob("*_stats.*"))
    assert run("sample", "-i", scan) == 0
    assert list(scan.parent.rglob("*_seg-vert_stats.tsv"))


def test_one_argument_is_enough(scan: Path, capsys: pytest.CaptureFixture[str], stub_models: dict[str, object]) -> None:
    assert run("sample", "-i", scan) == 0
    out, err = capsys.readouterr()
    for name in ("seg-spine_msk.nii.gz", "seg-vert_msk.nii.gz", "seg-spine_ctd.json", "seg-spine_snp.png"):
        assert f"sub-x_mod-T2w_{name}" in out
        assert (scan.parent / "derivatives_seg" / f"sub-x_mod-T2w_{name}").is_file()
    assert "structures" in err and "\x1b[" not in err  # plain lines in a pipe
    names = [stub_models[f"{phase} name"] for phase in ("semantic", "instance", "labeling")]
    assert names == ["t2w", "instance", "t2w_labeling"]
    assert run("sample", "-i", scan) == 0
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sub-x_T2w", "sub-x_T2w.nii.gz"])
def test_the_suffix_may_be_left_out(scan: Path, name: str) -> None:
    assert run("sample", "-i", scan.with_name(name)) == 0


def test_a_ct_gets_the_ct_models(scan: Path, stub_models: dict[str, object]) -> None:
    air = SCAN.with_array(SCAN.array - 1000)
    nib.save(nib.Nifti1Image(air.array, air.affine), scan.with_name("unnamed.nii.gz"))
    nib.save(nib.Nifti1Image(air.array, air.affine), scan.with_name("sub-x_ct.nii.gz"))
    for name in ("unnamed.nii.gz", "sub-x_ct.nii.gz"):
        run("sample", "-i", scan.with_name(name))
        assert stub_models["semantic name"] == "ct" and stub_models["labeling name"] == "ct_labeling"


def test_a_missing_labelling_model_leaves_the_landmarks(
    scan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str, **how: object) -> None:
        raise ModelError(f"{name} is damaged.", "Install it again.")

    monkeypatch.setattr("spineps.models.registry.get_labeling_model", missing)
    assert run("sample", "-i", scan) == 0
    assert "Install it again. Until then the names rest on landmarks" in capsys.readouterr().err
    header = json.loads((scan.parent / "derivatives_seg" / "sub-x_mod-T2w_seg-spine_ctd.json").read_text())[0]
    assert header["naming"]["confidence"]["L5"] > 0.4
    assert run("sample", "-i", scan, "-ml", "t2w_labeling") == ErrCode.MODEL.exit_code


OLD = "-model_semantic a -model_instance b -model_labeling none -der_name out -nocrop -non4 -ntl -cpu -save_debug -v"
NEW = (
    "--model-semantic a --model-instance b --model-labeling none --derivative-name out --no-crop --no-n4 "
    "--enforce-12-thoracic --cpu --save-debug --verbose"
)
SHORT = "-ms a -mv b -ml none -dn out -nc --no-n4 --enforce-12-thoracic --cpu -sd -v"


@pytest.mark.parametrize("spelling", [OLD, NEW, SHORT])
def test_both_generations_of_flags(spelling: str, scan: Path, stub_models: dict[str, object]) -> None:
    assert run("sample", "-i", scan, *spelling.split()) == 0
    record = json.loads((scan.parent / "out" / "sub-x_mod-T2w_seg-spine_prov.json").read_text())
    options = record["options"]
    assert not options["preprocess"]["crop"] and not options["preprocess"]["n4"]
    assert options["labeling"]["force_no_tl_anomaly"] and options["output"]["save_debug_data"]
    assert (stub_models["semantic name"], stub_models["instance name"]) == ("a", "b")
    assert stub_models["semantic how"] == {"use_cpu": True, "threads": None, "precision": None}
    assert "labeling name" not in stub_models


FLAGS = """
--derivative-name -dn --save-debug -sd --save-softmax-logits -ssl --save-modelres-mask -smrm --override-semantic -os
--override-instance -oi --override-postpair -opp --override-ctd -oc --ignore-inference-compatibility -iic --no-crop
--no-n4 --enforce-12-thoracic --no-enforce-12-thoracic --batch-size -bs --amp --step-size --no-tta --cpu --run-cprofiler
-rcp --verbose -v -ms -mi -ml -i
"""


def test_every_documented_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command, more in (("sample", ["-mv"]), ("dataset", ["-d", "-rn", "-ibf", "-imc", "-sl", "-ssf"])):
        code = f"import sys; from spineps.cli.main import main; main(['{command}', '--help'])"
        wide = {"COLUMNS": "250", "TERMINAL_WIDTH": "250", "NO_COLOR": "1", "PATH": "", "PYTHONIOENCODING": "utf-8"}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=wide, check=True)
        words = set(out.stdout.replace(",", " ").split())
        assert not [flag for flag in [*FLAGS.split(), *more] if flag not in words]


def test_override_flags_do_it_again(scan: Path, stub_models: dict[str, object]) -> None:
    semantic, instance = stub_models["semantic"], stub_models["instance"]
    assert isinstance(semantic, Oracle) and isinstance(instance, ByHeight)
    for flags, calls in (([], (1, 1)), (["-oc"], (1, 1)), (["-oi"], (1, 2)), (["-override_semantic"], (2, 3))):
        assert run("sample", "-i", scan, "--no-n4", *flags) == 0
        assert (semantic.calls, instance.calls) == calls


def test_json_is_one_line(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "-i", scan, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer["code"] == "OK" and answer["exit_code"] == 0 and answer["error"] is None
    assert Path(answer["files"]["out_spine"]).is_file()
    assert answer["peak_memory_gb"] is None or answer["peak_memory_gb"] > 0
    assert run("sample", "-i", scan.with_name("none.nii.gz"), "--json") == ErrCode.NOT_FOUND.exit_code
    answer = json.loads(capsys.readouterr().out)
    assert answer["code"] == "NOT_FOUND" and "none.nii.gz" in answer["error"] and answer["cure"]


def test_errors_have_their_own_exit_code(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "-i", scan.with_name("none.nii.gz")) == ErrCode.NOT_FOUND.exit_code
    assert "sub-x_T2w.nii.gz" in capsys.readouterr().err  # the cure names what is there
    broken = scan.with_name("sub-y_T2w.nii.gz")
    broken.write_bytes(scan.read_bytes()[:500])
    assert run("sample", "-i", broken) == ErrCode.UNREADABLE.exit_code
    assert run("sample", "-i", scan, "--step-size", 5) == ErrCode.OPTIONS.exit_code
    assert "proc_sem_step_size" in capsys.readouterr().err
    assert run("sample") == run("sample", "-i", scan, "--nonsense") == 2


def test_dataset(tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dataset", "-i", tmp_path) == ErrCode.NOT_FOUND.exit_code
    assert run("dataset", "-d", tmp_path, "-raw_name", ".", "-sl", "-ssf") == 0
    assert "1 scans: 1 processed" in capsys.readouterr().out
    assert (tmp_path / "logs").is_dir() and len(list((tmp_path / "snaps_seg").iterdir())) == 1
    (tmp_path / "sub-bad_T2w.nii.gz").write_bytes(b"no")
    assert run("dataset", "-i", tmp_path, "-rn", ".", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["already_done"], answer["failed"]) == (1, 1)
    assert answer["failures"][0]["code"] == "UNREADABLE"
    (tmp_path / "none").mkdir()
    assert run("dataset", "-i", tmp_path, "-rn", "none") == 1


def test_models_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "list") == 0
    assert "t2w" in capsys.readouterr().out
    assert run("models", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["phase"] == "semantic"


def test_demo_on_a_scan_of_ones_own(tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--input", scan, "--out", tmp_path / "demo") == 0
    assert "picture" in capsys.readouterr().out
    assert not (tmp_path / "derivatives_seg").exists()  # nothing beside the scan
    assert (tmp_path / "demo" / "results" / "sub-x_mod-T2w_seg-spine_snp.png").is_file()
    assert run("demo", "--input", tmp_path / "none.nii", "--out", tmp_path / "demo") == ErrCode.NOT_FOUND.exit_code


def test_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("spineps.cli.demo.SHAPE", (64, 64, 24))
    assert run("phantom", "--out", tmp_path / "p", "--seed", 2) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    before = [path.read_bytes() for path in written]
    assert run("phantom", "--out", tmp_path / "p", "--seed", 2) == 0
    assert len(before) == 3 and before == [path.read_bytes() for path in written]
    assert run("phantom", "--region", "nowhere", "--out", tmp_path / "q") == ErrCode.OPTIONS.exit_code
    assert not (tmp_path / "q").exists()


def test_profile(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scan.parent)
    assert run("sample", "-i", scan, "-rcp") == 0
    assert (scan.parent / "spineps.prof").is_file()


@pytest.mark.parametrize("arguments", [["-c", "import spineps"], ["-m", "spineps", "--help"]])
def test_start_is_quick_and_light(arguments: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5  # 0.3 s on an idle machine; test machines are busy
    watched = """
import sys
from spineps.cli.main import main
try:
    main(["--help"])
except SystemExit:
    print("LOADED", [name for name in sys.argv[1:] if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", watched, *HEAVY], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in out


def test_the_device_is_always_told(capsys) -> None:
    from spineps.cli.report import Reporter
    from spineps.inference.engine import load_network
    from spineps.models.registry import BUNDLED

    with Reporter():
        load_network(BUNDLED / "instance", device="cpu", threads=1)
    assert "instance runs on CPU (OpenVINO" in capsys.readouterr().err
    with Reporter(quiet=True):
        load_network(BUNDLED / "instance", device="cpu", threads=1)
    assert not capsys.readouterr().err
