"""Torch files without torch: everything that torch writes is read, nothing that a file asks for is run."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spineps.errors import ModelError
from spineps.models.checkpoints.unpickle import LEGACY_MAGIC, Record, read_torch_file

#: Pickle opcodes of a tensor over storage "0" of four float32, with room for size and strides.
FLOATS = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI%d\ntQ"


def archive(
    path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, how: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", how) as z:
        z.writestr("archive/data.pkl", pickled)
        z.writestr("archive/byteorder", "little")
        for name, raw in (storages or {}).items():
            z.writestr(f"archive/data/{name}", raw)
    return path


def tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Pickle of {"w": tensor}."""

    def row(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    body = b"(" + FLOATS % numel + b"I%d\n" % offset + row(size) + row(stride) + b"I00\nNt"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + body + b"Rs."


class Runs:
    """Pickles into a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_system_calls_are_named_and_not_run(tmp_path: Path, protocol: int, nested: bool) -> None:
    proof = tmp_path / "run"
    evil: object = Runs(os.system, f"touch {proof}")
    content = {"state_dict": OrderedDict(a=[({1: evil},)])} if nested else evil
    with pytest.raises(ModelError, match=r"system.*Nothing was run"):
        read_torch_file(archive(tmp_path / "evil.ckpt", pickle.dumps(content, protocol)))
    assert not proof.exists()


@pytest.mark.parametrize("function", [eval, exec, subprocess.call, __import__, open])
def test_functions_that_run_or_open_are_refused(tmp_path: Path, function: object) -> None:
    with pytest.raises(ModelError, match="attack"):
        read_torch_file(archive(tmp_path / "evil.ckpt", pickle.dumps({"x": Runs(function, "1")}, 2)))


def test_unknown_functions_become_inert_records(tmp_path: Path) -> None:
    file = archive(
        tmp_path / "a.ckpt", pickle.dumps({"x": Runs(getattr, "text", "upper"), "y": Runs(print, "hello")}, 2)
    )
    content = read_torch_file(file)
    assert isinstance(content["x"], Record)
    assert content["x"].arguments == ("text", "upper")
    assert content.refused == ("builtins.getattr", "builtins.print")


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"cmy.code\nThing\n",
    ],
)
@pytest.mark.parametrize("state", [b"}U\x08__call__K\x01s", b"(N}U\x08__call__K\x01st"])
def test_functions_and_classes_cannot_be_changed(tmp_path: Path, target: bytes, state: bytes) -> None:
    with pytest.raises(ModelError, match="not its own"):
        read_torch_file(archive(tmp_path / "evil.ckpt", b"\x80\x02" + target + state + b"b."))


def test_states_and_attributes_of_records_do_nothing(tmp_path: Path) -> None:
    # Thing.__setstate__, __class__ and __reduce__ given by the file are attributes like any other.
    state = b"}(U\x0c__setstate__K\x01U\x09__class__K\x02U\x0a__reduce__K\x03u"
    file = archive(tmp_path / "a.ckpt", b"\x80\x02}U\x01xcmy.code\nThing\n)\x81" + state + b"bs.")
    thing = read_torch_file(file)["x"]
    assert type(thing).__mro__[1] is Record
    assert thing.__dict__["__class__"] == 2


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # remembered under the number 2**31: 16 GB for Python's own unpickler
        b"\x80\x02}U\x01x\x82\x01s.",  # an extension code
        b"\x80\x02h\x05.",  # recalls what was never remembered
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2**63 bytes
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\xff\x7f.",  # a byte array of 2**63 bytes
        b"\x80\x02}U\x01x(lp",  # ends in the middle
        b"\x80\x02]" + b"(" * 100_000 + b".",
        b"",
    ],
)
def test_nonsense_ends_in_an_error_or_does_no_harm(tmp_path: Path, pickled: bytes) -> None:
    file = archive(tmp_path / "a.ckpt", pickled)
    try:
        assert read_torch_file(file) == {}
    except ModelError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride"),
    [
        (5, 0, (2,), (1,)),  # more values than the file has
        (10**15, 0, (2,), (1,)),
        (-4, 0, (2,), (1,)),
        (4, 0, (5,), (1,)),  # beyond the storage
        (4, 3, (2,), (1,)),
        (4, 0, (2, 2), (2, 2)),
        (4, 3, (2,), (-1,)),
        (4, -1, (2,), (1,)),
        (4, 0, (-1,), (1,)),
        (4, 0, (10**12, 10**6), (0, 0)),  # a small storage spread over all memory
        (4, 0, (2, 2), (1,)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(
    tmp_path: Path, numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    file = archive(tmp_path / "a.ckpt", tensor(numel, offset, size, stride), {"0": struct.pack("4f", 1, 2, 3, 4)})
    with pytest.raises(ModelError):
        read_torch_file(file)


def test_views_share_their_storage(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.ckpt", tensor(4, 1, (2, 2), (1, 1)), {"0": struct.pack("4f", 1, 2, 3, 4)})
    assert read_torch_file(file)["w"].tolist() == [[2, 3], [3, 4]]


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    # A bomb: 100 MB of zeros in 100 kB.
    file = archive(tmp_path / "a.ckpt", tensor(25_000_000, 0, (5,), (1,)), {"0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="compressed"):
        read_torch_file(file)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04", LEGACY_MAGIC])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.pth"):
        read_torch_file(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="does not exist"):
        read_torch_file(tmp_path / "b.pth")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 400))
def test_garbage_never_escapes_as_another_error(tmp_path: Path, garbage: bytes, at: int) -> None:
    good = tensor(4, 0, (2, 2), (2, 1))
    spoilt = good[: at % len(good)] + garbage + good[at % len(good) + len(garbage) :]
    with contextlib.suppress(ModelError):
        read_torch_file(archive(tmp_path / "a.ckpt", spoilt, {"0": struct.pack("4f", 1, 2, 3, 4)}))


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_writes_is_read(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "plain": base,
        "turned part": base.t()[1:3],
        "row of it": base[1, 2:],
        "half": base.half(),
        "bfloat16": (base / 7).bfloat16(),
        "double": base.double(),
        "integers": torch.arange(5),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "yes and no": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(3.5),
        "spread": base[:, :1].expand(4, 3),
        "parameter": torch.nn.Parameter(base),
    }
    others = {
        "opt": argparse.Namespace(lr=1, path=PurePosixPath("/a")),
        "numpy": np.float32(3.25),
        "array": np.arange(6).reshape(2, 3),
        "words": {"a", "b"},
        "default": defaultdict(list, a=[1]),
        "count": Counter("aab"),
        "raw": b"abc",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
    }
    torch.save({**tensors, **others}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    content = read_torch_file(tmp_path / "a.pt")
    for name, value in tensors.items():
        wanted = value.detach().float().numpy()
        assert content[name].shape == wanted.shape, name
        assert np.array_equal(np.asarray(content[name], np.float32), wanted), name
    assert content["opt"].lr == 1
    assert content["numpy"] == np.float32(3.25)
    assert np.array_equal(content["array"], others["array"])
    assert (content["words"], content["raw"], content["default"]) == ({"a", "b"}, b"abc", {"a": [1]})
    assert "argparse.Namespace" in content.refused
    assert not content["plain"].flags.writeable


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_and_damaged_files_are_noticed(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in (10, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_torch_file(tmp_path / "b.pt")
    if zipped:
        at = whole.index(np.arange(100, 110, dtype=np.float32).tobytes())
        (tmp_path / "b.pt").write_bytes(whole[:at] + b"xxxx" + whole[at + 4 :])
        with pytest.raises(ModelError, match="damaged"):
            read_torch_file(tmp_path / "b.pt")


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.ckpt", tensor(4, 0, (2, 2), (2, 1)), {"0": struct.pack("4f", 1, 2, 3, 4)})
    code = (
        "import sys; from pathlib import Path; from spineps.models.checkpoints.unpickle import read_torch_file;"
        f"print(read_torch_file(Path({str(file)!r}))['w'].sum(), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["10.0", "False"]
