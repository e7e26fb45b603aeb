"""Published networks kept in OpenVINO's form: made once, checked at each use, made again when anything is wrong."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from spineps.errors import ModelError, OptionError
from spineps.inference import graph_cache
from spineps.inference.engine import load_network
from spineps.models.registry import BUNDLED

GOLDEN = Path(__file__).parent / "golden" / "nnunet" / "old_plain"
X = np.random.default_rng(0).standard_normal((1, 1, 8, 16, 16)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


def answer(folder: Path = GOLDEN) -> np.ndarray:
    result = load_network(folder, "openvino", threads=1)(X)
    assert isinstance(result, np.ndarray)
    return result


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(graph_cache, "read_published", reads)


def test_the_checkpoint_is_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer()
    (entry,) = cache.iterdir()
    assert sorted(f.name for f in entry.iterdir()) == ["network.bin", "network.json", "network.xml"]
    # Float32 weights, not the float16 that OpenVINO writes by default: as many bytes as the checkpoint has numbers.
    assert (entry / "network.bin").stat().st_size > 4 * 40_000
    forbid_reading(monkeypatch)
    assert np.array_equal(answer(), first)


@pytest.mark.parametrize("file", ["network.bin", "network.json", "network.xml"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "empty"])
def test_a_damaged_entry_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: str) -> None:
    first = answer()
    (entry,) = cache.iterdir()
    path = entry / file
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        path.write_bytes(whole[:20] + b"x" + whole[21:])
    elif damage == "empty":
        path.write_bytes(b"")
    assert np.array_equal(answer(), first)
    forbid_reading(monkeypatch)
    assert np.array_equal(answer(), first)


def test_other_weights_get_another_entry(cache: Path, tmp_path: Path) -> None:
    first = answer()
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    assert np.array_equal(answer(folder), first)
    assert len(list(cache.iterdir())) == 1, "the same files in another folder are the same network"
    plans = folder / "plans.json"
    plans.write_text(plans.read_text() + " ")
    answer(folder)
    assert len(list(cache.iterdir())) == 2


def test_what_was_not_used_for_long_goes_when_the_cache_is_full(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aged(path: Path, days: float) -> None:
        then = time.time() - days * 24 * 3600
        os.utime(path / "network.json" if (path / "network.json").exists() else path, (then, then))

    answer()
    (used,) = cache.iterdir()
    for name, days in {"oldest": 30.0, "older": 20.0, "today": 0.5, ".leftover": 2.0, ".being-made": 0.0}.items():
        (cache / name).mkdir()
        for file in ("network.bin", "network.json")[: 1 if name[0] == "." else 2]:
            (cache / name / file).write_bytes(bytes(500_000))
        aged(cache / name, days)
    aged(used, 40)
    answer()  # it is the newest again
    other = tmp_path / "model"
    shutil.copytree(GOLDEN, other)

    def store_another() -> set[str]:
        with (other / "plans.json").open("a") as plans:
            plans.write(" ")
        answer(other)
        return {path.name for path in cache.iterdir()} & {"oldest", "older", "today", ".being-made", ".leftover"}

    assert store_another() == {"oldest", "older", "today", ".being-made"}
    monkeypatch.setattr(graph_cache, "MOST", 4_000_000)
    assert store_another() == {"older", "today", ".being-made"}
    monkeypatch.setattr(graph_cache, "MOST", 1)
    assert store_another() == {"today", ".being-made"} and used.exists()


def test_a_cache_folder_that_cannot_be_written_only_costs_time(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = answer()
    shutil.rmtree(cache)
    cache.write_text("in the way")
    assert np.abs(answer() - first).max() < 1e-5
    assert "cache folder cannot be used" in caplog.text


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("SPINEPS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert graph_cache.cache_folder() == tmp_path / "spineps"


def test_any_size_and_batch(cache: Path) -> None:
    network = load_network(GOLDEN, "openvino", threads=1)
    both = network(np.concatenate([X, X[..., ::-1]]))
    assert isinstance(both, np.ndarray)
    assert both.shape == (2, 15, 8, 16, 16)
    assert np.abs(both[:1] - network(X)).max() < 1e-4
    assert network(X[:, :, :4, :8, :12]).shape == (1, 15, 4, 8, 12)  # type: ignore[union-attr]


@pytest.mark.parametrize("folder", [GOLDEN, BUNDLED / "semantic"], ids=["published", "bundled"])
def test_bfloat16_and_the_name_of_the_device(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plain, fast = load_network(folder, "openvino"), load_network(folder, "openvino", threads=2, precision="bf16")
    able = fast.device_name.endswith(", 2 threads, bf16)")
    assert plain.device_name.startswith("CPU (OpenVINO 20")
    own = "bf16" if able else "int8"
    assert plain.device_name.endswith(f", 1 thread, {'f32' if folder == GOLDEN else own})")
    plain = load_network(folder, "openvino", precision="f32")
    assert plain.device_name.endswith(", f32)")
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32, 32)).astype(np.float32)
    one, two = plain(x), fast(x)
    assert isinstance(one, np.ndarray)
    assert isinstance(two, np.ndarray)
    assert one.dtype == two.dtype == np.float32
    assert np.abs(one - two).max() < 0.1 * np.abs(one).max()


def test_eight_bits_are_close_to_float32_and_only_for_networks_that_were_measured(cache: Path) -> None:
    exact, coarse = (load_network(BUNDLED / "semantic", "openvino", precision=p) for p in ("f32", "int8"))
    assert exact.device_name.endswith("f32)") and coarse.device_name.endswith("int8)")
    x = np.zeros((1, 1, 48, 48, 32), np.float32)
    x[:, :, 8:32, 4:20], x[:, :, 10:30, 22:26], x[:, :, 8:32, 28:44] = 1, 2, 1.2
    x += np.random.default_rng(0).normal(0, 0.1, x.shape).astype(np.float32)
    one, two = exact(x), coarse(x)
    assert isinstance(one, np.ndarray) and isinstance(two, np.ndarray)
    assert 0 < np.abs(one - two).mean() < 0.1 * np.abs(one).mean()
    assert (one.argmax(1) == two.argmax(1)).mean() > 0.97
    assert load_network(BUNDLED / "instance", "openvino", precision="int8").device_name.endswith("f32)")
    assert load_network(GOLDEN, "openvino", precision="int8").device_name.endswith("f32)")


@pytest.mark.torch
def test_torch_says_what_it_runs_on(cache: Path) -> None:
    torch = pytest.importorskip("torch")
    network = load_network(GOLDEN, "torch", "cpu", precision="bf16")
    assert network.device_name == f"CPU (torch {'.'.join(torch.__version__.split('.')[:2])}, bf16)"
    assert network(X).dtype == np.float32  # type: ignore[union-attr]
    assert not cache.exists(), "torch needs no converted graph"


def test_wrong_wishes(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="precision"):
        load_network(GOLDEN, precision="f8")
    with pytest.raises(ModelError, match="no fold 7"):
        load_network(GOLDEN, fold=7)
    with pytest.raises(ModelError, match="does not exist"):
        load_network(tmp_path)
