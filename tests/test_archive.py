"""Zip archives that mean harm, or are merely broken: nothing of them is ever written outside the target."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from collections import namedtuple
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from model_zip import model_files, zipped

from spineps.errors import ModelError, OutputError
from spineps.models import archive
from spineps.models.archive import model_roots, portable_name, unpack


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "x.zip"


def refused(file: Path, content: bytes, why: str) -> None:
    file.write_bytes(content)
    top, out = file.parent.parent, file.parent.parent / "out"
    with pytest.raises(ModelError, match=why):
        for root in model_roots(file, file.name):
            unpack(file, root, out)
    shutil.rmtree(out, ignore_errors=True)
    assert {p.name for p in top.rglob("*")} == {"in", "x.zip"}


@pytest.mark.parametrize(
    ("prefix", "root"),
    [("", "."), ("T2w/", "T2w"), ("a/b__nnUNetPlans__3d/", "a/b__nnUNetPlans__3d"), ("./T2w/", "T2w")],
)
def test_a_model_is_found_and_unpacked_whatever_wraps_it(file: Path, prefix: str, root: str) -> None:
    file.write_bytes(zipped(model_files(), prefix))
    assert model_roots(file, "x") == [PurePosixPath(root)]
    unpack(file, PurePosixPath(root), file.parent / "out")
    found = {p.relative_to(file.parent / "out").as_posix(): p.read_bytes() for p in file.parent.rglob("out/**/*.*")}
    assert found == model_files()


def test_names_written_by_old_windows_tools(file: Path) -> None:
    file.write_bytes(zipped({name.replace("/", "\\"): c for name, c in model_files().items()}, "T2w\\"))
    unpack(file, model_roots(file, "x")[0], file.parent / "out")
    assert (file.parent / "out" / "fold_0" / "checkpoint_final.pth").read_bytes() == b"weights"


def test_what_desktops_add_is_left_out(file: Path) -> None:
    extra = {"__MACOSX/T2w/._inference_config.json": b"x", "T2w/.DS_Store": b"x", "T2w/._y": b"x", "T2w/fold_0/": b""}
    file.write_bytes(zipped({f"T2w/{name}": c for name, c in model_files().items()} | extra))
    (root,) = model_roots(file, "x")
    unpack(file, root, file.parent / "out")
    assert len([p for p in (file.parent / "out").rglob("*") if p.is_file()]) == 2


def test_several_models(file: Path) -> None:
    files = {f"{top}/{n}": c for top in ("b", "a", "a/inner") for n, c in model_files().items()}
    file.write_bytes(zipped(files))
    assert model_roots(file, "x") == [PurePosixPath("a"), PurePosixPath("b")]


EVIL = [
    "../evil", "a/../../evil", "/evil", "//server/share/evil", "C:/evil", "C:evil", "..\\evil", "\\evil",
    "\\\\server\\share\\evil", "a/..", "nul", "a/CON.txt", "com1", "LPT9.x", "aux .txt", "a:stream", "a/b.", "a/b ",
    "a//b", "what?", "new\nline", "a|b",
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_names_that_lead_elsewhere(file: Path, name: str) -> None:
    refused(file, zipped({**model_files(), name: b"evil"}), "name that leads elsewhere")


def test_a_name_cut_by_a_nul(file: Path) -> None:
    content = zipped({**model_files(), "good.txt/evil": b"x"}).replace(b"good.txt/evil", b"good.txt\0evil")
    refused(file, content, "name that leads elsewhere")


@given(st.text(st.sampled_from("ab.:/\\ \0\n|conulpt1¹é"), max_size=8))
@example("..")
@example("COM¹")
def test_an_accepted_name_is_one_plain_name(name: str) -> None:
    if portable_name(name):
        assert Path(name).name == name and name not in (".", "..") and not set(name) & set('/\\:\0"<>|?*')


def special(name: str, mode: int) -> bytes:
    stream = io.BytesIO(zipped(model_files()))
    with zipfile.ZipFile(stream, "a") as writer:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        writer.writestr(info, "/etc")
    return stream.getvalue()


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(file: Path, mode: int) -> None:
    refused(file, special("link", mode), "a link or a device")


def test_the_same_name_twice(file: Path) -> None:
    refused(file, zipped({**model_files(), "Fold_0/checkpoint_final.PTH": b"other"}), "twice")
    refused(file, zipped({**model_files(), "\u00e9": b"1", "e\u0301": b"2"}), "twice")


def test_encrypted(file: Path) -> None:
    content = bytearray(zipped(model_files()))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(signature, at + 1)
    refused(file, bytes(content), "encrypted.*Unpack it yourself")


def test_bombs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_SIZE", 1 << 20)
    refused(
        file, zipped({**model_files(), "zeros": bytes(4 << 20)}, compression=zipfile.ZIP_DEFLATED), "bomb.*bytes out of"
    )
    with monkeypatch.context() as few:
        few.setattr(archive, "MOST_FILES", 5)
        refused(file, zipped({**model_files(), **{f"{n}": b"" for n in range(5)}}), "bomb.*7 files")
    with monkeypatch.context() as small:
        small.setattr(archive, "LARGEST", 5)
        refused(file, zipped(model_files()), "bomb.*unpacked")


def declared(content: bytes, field: int, name: bytes, value: int) -> bytes:
    """The archive with one size of a member's central record replaced (20 packed, 24 unpacked)."""
    out = bytearray(content)
    at = out.rfind(name) - 46
    out[at + field : at + field + 4] = value.to_bytes(4, "little")
    return bytes(out)


def test_members_that_share_their_bytes(file: Path) -> None:
    content = zipped(model_files())
    refused(file, declared(content, 20, b"fold_0/checkpoint_final.pth", len(content) + 1), "same bytes|damaged")


@pytest.mark.parametrize("size", [3, 500])
def test_sizes_that_lie(file: Path, size: int) -> None:
    content = zipped(model_files(weights=bytes(100)), compression=zipfile.ZIP_DEFLATED)
    refused(file, declared(content, 24, b"fold_0/checkpoint_final.pth", size), "damaged")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_could_fill_the_memory(file: Path, compression: int) -> None:
    refused(file, zipped(model_files(), compression=compression), "not read here.*Unpack it yourself")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed_wherever_it_is(file: Path, compression: int) -> None:
    weights = bytes(range(256)) * 8
    content = zipped(model_files(weights=weights), compression=compression)
    for at in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        file.write_bytes(bytes(damaged))
        out = file.parent / "out"
        try:
            for root in model_roots(file, "x"):
                unpack(file, root, out)
        except ModelError:
            pass  # any other error fails the test
        else:
            # Some bytes (dates, attributes) mean nothing; what does must be whole.
            assert (out / "fold_0" / "checkpoint_final.pth").read_bytes() == weights
        shutil.rmtree(out, ignore_errors=True)
    for cut in range(0, len(content), 101):
        refused(file, content[:cut], "not a zip archive|damaged")


def test_what_is_no_archive_or_no_model(file: Path) -> None:
    refused(file, b"<!doctype html><title>Login", "an HTML page.*proxy")
    refused(file, b"", "not a zip archive")
    refused(file, zipped({"readme.txt": b"hello"}), r"holds no inference_config\.json.*docs/models\.md")


def test_a_full_disk_is_noticed_before_anything_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(zipped(model_files()))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 9))
    with pytest.raises(OutputError, match="disk is full"):
        unpack(file, PurePosixPath("."), file.parent / "out")
    assert not list((file.parent / "out").iterdir())
