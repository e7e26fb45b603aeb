"""Weights come in, are checked, replaced and removed; from a real server, from zip archives and from folders."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_server import Server, serving
from model_zip import model_files, write_model, zipped

from spineps.cli.main import main
from spineps.errors import ErrCode, InputNotFoundError, ModelError, OptionError, OutputError
from spineps.models import registry, releases
from spineps.models.download import DownloadError, Patience
from spineps.models.install import How, install
from spineps.models.installed import homes_of, remove, verify
from spineps.models.lock import exclusive
from spineps.models.receipt import RECEIPT, read_receipt
from spineps.models.registry import ALIASES, UnknownModelError, available_models
from spineps.models.releases import RELEASES, release

QUICK = How(patience=Patience(timeout=0.5, attempts=2, pause=0.01))
FORCE = How(force=True, patience=QUICK.patience)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("SPINEPS_OFFLINE", raising=False)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Holds every published archive, each wrapped in a folder of its own."""
    with serving() as running:
        monkeypatch.setattr(releases, "BASE", running.address + "/")
        for known in RELEASES:
            kind = known.phase.name.lower()
            running.url(f"/{known.archive}", zipped(model_files(kind, known.name.encode()), "Wrapped/"))
        yield running


def visible(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if not path.name.startswith("."))


def tidy(models: Path) -> bool:
    """Nothing temporary is left but lock files."""
    return all(path.suffix == ".lock" for path in (models / ".spineps").iterdir())


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["models", *map(str, arguments)])
    return int(caught.value.code or 0)


def test_the_two_tables_of_names_agree() -> None:
    assert {alias.release: alias.phase for alias in ALIASES if alias.release} == {r: r.phase for r in RELEASES}
    for known in RELEASES:
        assert known.address.startswith("https://github.com/") and known.address.endswith(".zip")
        for name in (known.name, known.name.upper(), f"{known.name}_{known.phase.name.lower()}", known.folder):
            assert release(name) is known
    assert release("labeling") is release("t2w_labeling") and release("nothing") is None


def test_all_published_models(server: Server, models: Path) -> None:
    done = install(["all"], None, QUICK)
    assert [d.name for d in done] == [known.name for known in RELEASES] and all(d.new for d in done)
    assert visible(models) == sorted(known.folder for known in RELEASES) and tidy(models)
    origins = {entry.name: entry.origin for entry in reversed(available_models())}
    assert {origins[known.name] for known in RELEASES} == {"installed"} and origins["semantic"] == "bundled"
    for known in RELEASES:
        weights = models / known.folder / "fold_0" / "checkpoint_final.pth"
        assert weights.read_bytes() == known.name.encode()
    requests = len(server.seen)
    again = install(["t2w_semantic", "LABELING", "all"], None, QUICK)
    assert not any(d.new for d in again) and len(server.seen) == requests == len(RELEASES)


def test_an_unknown_name_is_told_before_anything_is_fetched(server: Server) -> None:
    with pytest.raises(UnknownModelError, match=r"t3w.*Choose from: t2w"):
        install(["t2w", "t3w"], None, QUICK)
    assert not server.seen


@pytest.mark.parametrize("fault", ["cut", "stall", 500])
def test_a_bad_line_is_mended(server: Server, models: Path, fault: str | int) -> None:
    server.faults = [fault]
    assert install(["t2w"], None, QUICK)[0].new and tidy(models)
    assert len(server.seen) == 2


def test_a_broken_off_download_is_gone_on_with_by_the_next_run(server: Server, models: Path) -> None:
    server.faults = ["cut"]
    once = How(patience=Patience(attempts=1))
    with pytest.raises(DownloadError, match="goes on from where it stopped"):
        install(["t2w"], None, once)
    assert visible(models) == [] and not any(entry.origin == "installed" for entry in available_models())
    install(["t2w"], None, once)
    (_, whole, first), (_, asked, second) = server.seen
    assert whole is None and asked == f"bytes={first}-"
    assert first + second == len(server.files["/v1.0.9/t2w.zip"]) and tidy(models)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>login", "HTML page"),
        (zipped({"readme": b""}), "no inference_config"),
        (zipped({"inference_config.json": b"{}"}), "missing log_name"),
        (zipped({"inference_config.json": model_files()["inference_config.json"]}), "no weights"),
        (zipped(model_files("instance")), "instance model, but t2w is for semantic"),
        (zipped({**model_files(), "../evil": b""}), "leads elsewhere"),
        (zipped(model_files())[:-30], "not a zip"),
    ],
)
def test_a_wrong_file_changes_nothing(server: Server, models: Path, content: bytes, why: str) -> None:
    (done,) = install(["t2w"], None, QUICK)
    before = {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()}
    server.url("/v1.0.9/t2w.zip", content)
    with pytest.raises(ModelError, match=why):
        install(["t2w"], None, How(force=True, accept_new=True))
    assert {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()} == before and tidy(models)
    assert visible(models) == ["T2w_semantic_v1.0.9"]


def test_the_first_archive_is_pinned(server: Server, models: Path) -> None:
    (done,) = install(["t2w"], None, QUICK)
    install(["t2w"], None, FORCE)  # the same again
    old = server.files["/v1.0.9/t2w.zip"]
    server.url("/v1.0.9/t2w.zip", zipped(model_files(weights=b"others")))
    with pytest.raises(ModelError, match=r"has changed: its sha256 was \w{64} and is \w{64} now.*--accept-new"):
        install(["t2w"], None, FORCE)
    weights = done.folder / "fold_0" / "checkpoint_final.pth"
    assert weights.read_bytes() == b"t2w" and tidy(models)
    install(["t2w"], None, How(force=True, accept_new=True))
    assert weights.read_bytes() == b"others"
    server.url("/v1.0.9/t2w.zip", old)  # the new one is pinned now
    with pytest.raises(ModelError, match="has changed"):
        install(["t2w"], None, FORCE)
    remove(done.folder)
    assert install(["t2w"], None, QUICK)[0].new


def test_a_hash_known_beforehand_holds_from_the_first_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    table = tuple(replace(known, sha256="0" * 64) for known in RELEASES)
    monkeypatch.setattr("spineps.models.install.RELEASES", table)
    with pytest.raises(ModelError, match="has changed: its sha256 was 000"):
        install(["t2w"], None, QUICK)


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_offline(server: Server, models: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (done,) = install(["ct"], None, QUICK)
    if how == "environment":
        monkeypatch.setenv("SPINEPS_OFFLINE", "1")
    offline = How(offline=how == "flag", patience=QUICK.patience)
    requests = len(server.seen)
    with pytest.raises(DownloadError, match=rf"{server.address}/v1\.0\.9/t2w\.zip .*install t2w --from FILE"):
        install(["t2w"], None, offline)
    assert install(["ct"], None, offline) == [type(done)("ct", done.folder, new=False)]
    source = models.parent / "t2w.zip"
    source.write_bytes(zipped(model_files()))
    assert install([], str(source), offline)[0].name == "t2w"
    assert len(server.seen) == requests


@pytest.mark.parametrize(
    ("file", "prefix", "kind", "folder"),
    [
        ("t2w.zip", "", "semantic", "T2w_semantic_v1.0.9"),
        ("labeling.zip", "anything/", "labeling", "T2w_labeling_v1.4.0"),
        ("x.zip", "CT_instance_v2.0.0/", "instance", "CT_instance_v2.0.0"),
        ("x.zip", "T1w_semantic/Y__nnUNetPlans__3d_fullres/", "semantic", "T1w_semantic_v1.0.9"),
        ("x.zip", "Mine/", "semantic", "Mine"),
        ("mine.zip", "Y__nnUNetPlans__3d_fullres/", "semantic", "mine"),
    ],
)
def test_a_zip_finds_its_folder(models: Path, file: str, prefix: str, kind: str, folder: str) -> None:
    source = models.parent / file
    source.write_bytes(zipped(model_files(kind), prefix))
    (done,) = install([], str(source))
    assert done.folder == models / folder and (done.folder / "inference_config.json").is_file()
    receipt = read_receipt(done.folder)
    assert receipt is not None and receipt.source == file and set(receipt.files) == set(model_files(kind))
    name = release(folder).name if release(folder) else folder.lower()  # type: ignore[union-attr]
    assert done.name == name in [e.name for e in available_models() if e.origin == "installed"]


NNUNET = "Dataset511_x/nnUNetTrainer__nnUNetPlans__3d_fullres/"


@pytest.mark.parametrize("prefix", ["", "T2w_semantic_v1.0.9/", NNUNET, f"my release/T2w semantic/{NNUNET}"])
def test_a_network_runs_however_its_zip_is_laid_out(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """Nobody here has seen the published archives: files at the top or in folders, with what a Mac adds."""
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path / "cache"))
    golden = Path(__file__).parent / "golden" / "nnunet" / "old_plain"
    files = {f.relative_to(golden).as_posix(): f.read_bytes() for f in golden.rglob("*") if f.is_file()}
    files |= {"version_0/checkpoints/epoch=01-step=2-val_f1=0.98_valf1-weights.ckpt": b"named as Lightning does"}
    junk = {f"__MACOSX/{prefix}._{Path(name).name}": b"\0\5\x16\7" for name in files}
    source = tmp_path / "t2w.zip"
    source.write_bytes(zipped({prefix + name: c for name, c in files.items()} | junk | {f"{prefix}.DS_Store": b""}))
    (done,) = install([], str(source))
    assert {f.relative_to(done.folder).as_posix() for f in done.folder.rglob("*") if f.is_file()} == {RECEIPT, *files}
    network = registry.get_semantic_model("t2w", use_cpu=True, threads=1).network
    assert np.asarray(network(np.zeros((1, 1, 8, 16, 16), np.float32))).shape == (1, 15, 8, 16, 16)


def test_a_named_zip_or_folder_gets_the_name(models: Path) -> None:
    source = write_model(models.parent / "somewhere" / "Whatever")
    assert install(["vibe"], str(source))[0].folder.name == "Vibe_semantic_v1.0.9"
    assert install(["my_own"], str(source))[0].folder.name == "my_own"
    with pytest.raises(ModelError, match="labeling"):
        install(["labeling"], str(source))
    for wrong in ("..", "a/b", ".hidden", "nul", ""):
        with pytest.raises(OptionError, match="cannot be the name"):
            install([wrong], str(source))
    assert visible(models) == ["Vibe_semantic_v1.0.9", "my_own"] and tidy(models)


def test_everything_of_the_published_installation_moves_over(models: Path) -> None:
    old = models.parent / "site-packages" / "spineps" / "models"
    for known in RELEASES[:3]:
        write_model(old / known.folder / "X__nnUNetPlans__3d_fullres")
    write_model(old / "T2w_labeling_v1.4.0", "labeling")
    (old / "instance.zip").write_bytes(zipped(model_files("instance"), "inner/"))
    real = old.parent / "fold_1"
    real.mkdir()
    (real / "checkpoint_final.pth").write_bytes(b"linked")
    (old / "T2w_labeling_v1.4.0" / "fold_1").symlink_to(real)
    (real / "circle").symlink_to(old)
    for path in (old / "T2w_labeling_v1.4.0", *(old / "T2w_labeling_v1.4.0").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with pytest.raises(ModelError, match=r"does not hold CT_semantic_v2\.0\.0.*It holds: .*T1w_semantic"):
        install(["ct", "t2w"], str(old))
    assert [d.name for d in install(["t2w", "labeling"], str(old))] == ["t2w", "t2w_labeling"]
    assert {d.name for d in install(["all"], str(old))} == {"t2w", "t1w", "vibe", "t2w_labeling", "instance"}
    assert (models / "T2w_labeling_v1.4.0" / "fold_1" / "checkpoint_final.pth").read_bytes() == b"linked"
    assert {v.state for v in verify()} == {"ok"} and tidy(models)
    for path in (old / "T2w_labeling_v1.4.0", *(old / "T2w_labeling_v1.4.0").rglob("*")):
        path.chmod(0o755)


def test_sources_that_hold_nothing_or_too_much(models: Path) -> None:
    top = models.parent
    with pytest.raises(InputNotFoundError, match="nowhere"):
        install([], str(top / "nowhere"))
    (top / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no inference_config\.json.*docs/models\.md"):
        install([], str(top / "empty"))
    with pytest.raises(OptionError, match="models folder already"):
        install([], str(write_model(models / "here")))
    for name in ("a/t2w", "b/t2w_semantic"):
        write_model(top / "two" / name)
    with pytest.raises(ModelError, match="two models called"):
        install([], str(top / "two"))
    broken = write_model(top / "broken")
    (broken / "fold_1").symlink_to(top / "gone")
    with pytest.raises(ModelError, match="fold_1 is a broken link"):
        install([], str(broken))
    assert visible(models) == ["here"]


def test_nothing_that_is_there_goes_without_force(models: Path) -> None:
    (models / "mine").mkdir()
    (models / "mine" / "thesis.txt").write_text("years of work")
    source = write_model(models.parent / "mine")
    with pytest.raises(OptionError, match="--force"):
        install([], str(source))
    assert (models / "mine" / "thesis.txt").is_file()
    assert install([], str(source), How(force=True))[0].new and not (models / "mine" / "thesis.txt").exists()


def test_what_was_fetched_is_kept_when_only_force_was_missing(server: Server, models: Path) -> None:
    (models / "T2w_semantic_v1.0.9").mkdir()
    with pytest.raises(OptionError, match="--force"):
        install(["t2w"], None, QUICK)
    assert install(["t2w"], None, FORCE)[0].new and len(server.seen) == 1 and tidy(models)


def test_a_failed_swap_brings_the_old_one_back(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(models.parent / "mine")
    (done,) = install([], str(source))
    real = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".staging"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", failing)
        with pytest.raises(OutputError, match=r"may not be written.*SPINEPS_SEGMENTOR_MODELS"):
            install([], str(source), How(force=True))
    assert verify("mine")[0].state == "ok" and tidy(models)
    # Killed between the two renames: the next run puts the old one back first.
    done.folder.rename(models / ".spineps" / "mine.old")
    (models / ".spineps" / "mine.staging" / "half").mkdir(parents=True)
    assert install([], str(source)) == [type(done)("mine", done.folder, new=False)] and verify("mine")[0].state == "ok"


def test_the_registry_sees_no_half_model(models: Path) -> None:
    write_model(models / ".spineps" / "T2w_semantic_v1.0.9.staging")
    assert all(entry.origin == "bundled" for entry in available_models()) and verify() == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(models: Path) -> None:
    models.chmod(0o555)
    with pytest.raises(OutputError, match="may not be written"):
        install([], str(write_model(models.parent / "x")))


def test_a_models_folder_that_cannot_be_made(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / ".spineps").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"cannot be written.*SPINEPS_SEGMENTOR_MODELS"):
        install([], str(write_model(models.parent / "x")))
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(models / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        install(["t2w"], None, QUICK)


def test_verify_and_remove(models: Path) -> None:
    install(["t2w"], str(write_model(models.parent / "x")))
    hand = write_model(models / "ByHand")
    states = {v.name: v.state for v in verify()}
    assert states == {"t2w": "ok", "byhand": "unrecorded"}
    home = models / "T2w_semantic_v1.0.9"
    (home / "fold_0" / "checkpoint_final.pth").write_bytes(b"Weights")
    (home / "extra").write_bytes(b"")
    (home / "inference_config.json").unlink()
    (verdict,) = verify("t2w_semantic")
    assert verdict.state == "damaged"
    assert verdict.problems == (
        "missing: inference_config.json",
        "changed: fold_0/checkpoint_final.pth",
        "added: extra",
    )
    (home / RECEIPT).write_text("{")
    assert "is damaged" in verify("t2w")[0].problems[0]
    for name in ("t2w", "byhand"):
        for folder in homes_of(name):
            remove(folder)
    assert visible(models) == [] and tidy(models) and not hand.exists()
    for ask in (verify, homes_of):
        with pytest.raises(UnknownModelError, match="is installed in"):
            ask("t2w")


def test_removing_a_link_leaves_what_it_points_to(models: Path) -> None:
    real = write_model(models.parent / "real")
    (models / "linked").symlink_to(real)
    remove(models / "linked")
    assert visible(models) == [] and (real / "inference_config.json").is_file()


def test_a_lock_waits_for_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    order, held = [], threading.Event()

    def first() -> None:
        with exclusive(tmp_path / "lock"):
            held.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with exclusive(tmp_path / "lock", poll=0.01):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    hold = (
        "import sys, time; from pathlib import Path; from spineps.models.lock import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    process.kill()
    process.communicate()
    start = time.perf_counter()
    with exclusive(tmp_path / "lock", poll=0.01):
        assert time.perf_counter() - start < 2


def process(*arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "spineps", "models", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_at_once_download_once(server: Server, models: Path) -> None:
    address = server.url("/t2w.zip", zipped(model_files(weights=bytes(100_000))))
    server.faults = ["stall"]
    first = process("install", "--from", address)
    wait_until(lambda: bool(server.seen))
    second = process("install", "--from", address)
    assert second.stderr is not None and "waiting for it" in second.stderr.readline()
    server.go_on.set()  # the line goes dead half way; the first tries again
    answers = [p.communicate(timeout=60)[0].split()[1] for p in (first, second)]
    assert answers == ["installed", "was"] and first.returncode == second.returncode == 0
    assert len(server.seen) == 2 and verify()[0].state == "ok" and tidy(models)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_what_can_be_gone_on_with(server: Server, models: Path) -> None:
    address = server.url("/t2w.zip", zipped(model_files(weights=bytes(100_000))))
    server.faults = ["stall"]
    running = process("install", "--from", address)
    parts = models / ".spineps"
    wait_until(lambda: any(path.stat().st_size for path in parts.glob("*.part")))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130 and "goes on from here" in err and "Traceback" not in err
    assert visible(models) == []
    (part,) = parts.glob("*.part")
    have = part.stat().st_size
    assert install([], address, QUICK)[0].new and server.seen[-1][1] == f"bytes={have}-"


def test_the_command(server: Server, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("install", "t2w", "labeling") == 0
    out = capsys.readouterr().out
    assert "T2w_semantic_v1.0.9" in out and "T2w_labeling_v1.4.0" in out
    assert command("install", "t2w_semantic") == 0 and "was there" in capsys.readouterr().out
    assert command("path") == 0 and capsys.readouterr().out.strip() == str(models)
    assert command("path", "t2w_semantic") == 0
    assert capsys.readouterr().out.strip() == str(models / "T2w_semantic_v1.0.9")
    assert command("list", "--json") == 0
    rows = {row["name"]: row for row in reversed(json.loads(capsys.readouterr().out)["models"])}
    assert rows["t2w"]["pinned"] is True and rows["ct"]["pinned"] is None and rows["ct"]["megabytes"] > 1
    assert command("verify") == 0 and capsys.readouterr().out.count(" ok ") == 2
    (models / "T2w_semantic_v1.0.9" / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    assert command("verify", "t2w") == ErrCode.MODEL.exit_code
    out = capsys.readouterr().out
    assert "changed: fold_0/checkpoint_final.pth" in out and "install t2w --force" in out
    assert command("install", "t2w", "--force") == 0 and command("verify", "t2w") == 0
    assert command("remove", "t2w") == ErrCode.OPTIONS.exit_code  # nobody there to be asked
    assert command("remove", "t2w", "labeling", "--yes") == 0 and visible(models) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["install"], ErrCode.OPTIONS),
        (["install", "t3w"], ErrCode.MODEL),
        (["install", "t2w", "--offline"], ErrCode.MODEL),
        (["install", "--from", "nowhere.zip"], ErrCode.NOT_FOUND),
        (["verify", "t2w"], ErrCode.MODEL),
        (["remove", "t2w", "--yes"], ErrCode.MODEL),
        (["path", "t3w"], ErrCode.MODEL),
    ],
)
def test_errors_have_their_exit_codes(arguments: list[str], code: ErrCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == code.exit_code
    assert capsys.readouterr().err.startswith("error: ")


def test_the_bundled_model_answers_and_tells_once_how_to_install(caplog: pytest.LogCaptureFixture) -> None:
    registry._tell_how_to_install.cache_clear()
    with caplog.at_level(logging.INFO, "spineps"):
        for _ in range(2):
            assert registry.get_semantic_model("t1w").origin == "bundled"
    assert caplog.text.count("spineps models install t1w") == 1


def test_the_documents_name_what_exists() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    if not page.is_file():
        pytest.skip("an installed package carries no documents")
    text = page.read_text(encoding="utf-8")
    for known in RELEASES:
        assert known.folder in text and known.archive in text
    assert set(re.findall(r"spineps models (\w+)", text)) == {"install", "list", "verify", "path", "remove"}
    from spineps.models.config import _REQUIRED

    assert not [key for key in _REQUIRED if f"`{key}`" not in text]
