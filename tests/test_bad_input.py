"""Every input that can be wrong: a clear error that names the file and the cure, its own code, nothing left behind."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from stubs import AFFINE, ByHeight, Oracle, spine

from spineps import ErrCode, process_img_nii
from spineps.errors import SpinepsError
from spineps.outputs.nifti import read_image
from spineps.volume import Volume

GREY = np.random.default_rng(0).integers(0, 500, (12, 14, 6)).astype(np.int16)


def save(path: Path, array: np.ndarray = GREY, affine: np.ndarray | None = AFFINE, **header: object) -> Path:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def rewritten(path: Path, change: Callable[[np.ndarray], None]) -> Path:
    """The file with its raw header changed behind nibabel's back."""
    data = bytearray(path.read_bytes())
    header = np.frombuffer(data, nib.Nifti1Header.template_dtype, 1)[0:1]
    change(header[0])
    path.write_bytes(bytes(data))
    return path


def truncated(path: Path) -> Path:
    save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def zeroed(path: Path) -> Path:
    """The end of the zipped data lost to zeros: it still unzips, to something else."""
    save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) // 2))
    return path


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pixdim(path: Path, value: float) -> Path:
    image = nib.Nifti1Image(GREY, None)
    nib.save(image, path)

    def change(header: np.ndarray) -> None:
        header["pixdim"][2] = value
        header["sform_code"] = 0
        header["qform_code"] = 0

    return rewritten(path, change)


def affine(path: Path, change: Callable[[np.ndarray], None]) -> Path:
    matrix = AFFINE.copy()
    change(matrix)
    save(path)

    def put(header: np.ndarray) -> None:
        header["srow_x"], header["srow_y"], header["srow_z"] = matrix[:3]

    return rewritten(path, put)


RGB = np.zeros((12, 14, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])

BAD = {
    "missing": (lambda d: d / "sub-x_T2w.nii.gz", ErrCode.NOT_FOUND),
    "folder": (lambda d: d, ErrCode.NOT_FOUND),
    "truncated gzip": (lambda d: truncated(d / "sub-x_T2w.nii.gz"), ErrCode.UNREADABLE),
    "truncated": (lambda d: truncated(d / "sub-x_T2w.nii"), ErrCode.UNREADABLE),
    "gzip with a wrong checksum": (lambda d: zeroed(d / "sub-x_T2w.nii.gz"), ErrCode.UNREADABLE),
    "damaged gzip": (lambda d: text(d / "sub-x_T2w.nii.gz", b"\x1f\x8b" + bytes(100)), ErrCode.UNREADABLE),
    "not NIfTI": (lambda d: text(d / "sub-x_T2w.nii.gz", gzip.compress(b"hello" * 99)), ErrCode.UNREADABLE),
    "empty file": (lambda d: text(d / "sub-x_T2w.nii", b""), ErrCode.UNREADABLE),
    "DICOM": (lambda d: text(d / "sub-x_T2w.nii", bytes(128) + b"DICM" + bytes(400)), ErrCode.UNREADABLE),
    "several volumes": (lambda d: save(d / "sub-x_T2w.nii", np.stack([GREY] * 3, -1)), ErrCode.SHAPE),
    "one slice": (lambda d: save(d / "sub-x_T2w.nii", GREY[..., :1]), ErrCode.SHAPE),
    "two dimensions": (lambda d: save(d / "sub-x_T2w.nii", GREY[..., 0]), ErrCode.SHAPE),
    "RGB": (lambda d: save(d / "sub-x_T2w.nii", RGB), ErrCode.VALUES),
    "complex": (lambda d: save(d / "sub-x_T2w.nii", GREY.astype(np.complex64)), ErrCode.VALUES),
    "all NaN": (lambda d: save(d / "sub-x_T2w.nii", np.full((9, 9, 9), np.nan, np.float32)), ErrCode.VALUES),
    "constant": (lambda d: save(d / "sub-x_T2w.nii", np.full((9, 9, 9), 7, np.int16)), ErrCode.EMPTY),
    "zero voxel size": (lambda d: pixdim(d / "sub-x_T2w.nii", 0.0), ErrCode.GEOMETRY),
    "negative voxel size": (lambda d: pixdim(d / "sub-x_T2w.nii", -1.0), ErrCode.GEOMETRY),
    "NaN voxel size": (lambda d: pixdim(d / "sub-x_T2w.nii", np.nan), ErrCode.GEOMETRY),
    "huge voxels": (lambda d: affine(d / "sub-x_T2w.nii", lambda m: m.__imul__(200)), ErrCode.GEOMETRY),
    "singular affine": (
        lambda d: affine(d / "sub-x_T2w.nii", lambda m: m.__setitem__((slice(3), 1), m[:3, 0])),
        ErrCode.GEOMETRY,
    ),
    "NaN affine": (lambda d: affine(d / "sub-x_T2w.nii", lambda m: m.__setitem__((0, 0), np.nan)), ErrCode.GEOMETRY),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, code = BAD[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SpinepsError) as caught:
        read_image(path)
    assert caught.value.code == code
    assert path.name in caught.value.message and caught.value.cure
    _, truth = spine(2)
    _, answer = process_img_nii(path, Oracle(truth), ByHeight())  # type: ignore[arg-type, misc]
    assert answer == code and answer.exit_code > 2
    assert caught.value.cure in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_exit_codes_are_distinct() -> None:
    codes = [c.exit_code for c in ErrCode if c not in (ErrCode.OK, ErrCode.ALL_DONE)]
    assert len(set(codes)) == len(codes) and min(codes) > 2


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_every_real_type_gives_the_same_numbers(tmp_path: Path, kind: str) -> None:
    array = (GREY // 4).astype(kind)
    volume, info, warnings = read_image(save(tmp_path / "x.nii.gz", array))
    np.testing.assert_array_equal(volume.array, (GREY // 4).astype(np.float32))
    assert (info.dtype, info.values) == (kind, kind) and not warnings


def test_scaled_integers_and_small_floats(tmp_path: Path) -> None:
    image = nib.Nifti1Image((GREY / 500).astype(np.float32), AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "x.nii.gz")
    volume, info, _ = read_image(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(volume.array, GREY / 500, atol=1e-4)
    assert (info.dtype, info.values) == ("int16", "float64")


def test_nan_and_inf_become_the_minimum_with_a_warning(tmp_path: Path) -> None:
    array = GREY.astype(np.float32) + 5
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    volume, _, warnings = read_image(save(tmp_path / "x.nii.gz", array))
    assert volume.array[0, 0, :3].tolist() == [5, 5, 5] and "3 voxels" in warnings[0]


def test_one_volume_in_four_dimensions_is_squeezed(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "x.nii.gz", GREY[..., None]))[0].shape == GREY.shape
    assert read_image(save(tmp_path / "y.nii.gz", GREY[..., None, None]))[0].shape == GREY.shape


def test_names_and_compression_do_not_matter(tmp_path: Path) -> None:
    for name in ("a b.c d.nii", "x.nii.gz"):
        np.testing.assert_array_equal(read_image(save(tmp_path / name))[0].array, GREY)
    plain = save(tmp_path / "plain.nii")
    lying = plain.rename(tmp_path / "lying.nii.gz")
    np.testing.assert_array_equal(read_image(lying)[0].array, GREY)
    big_endian = nib.Nifti1Image(GREY, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(big_endian, tmp_path / "big.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "big.nii")[0].array, GREY)
    nib.save(nib.Nifti2Image(GREY, AFFINE), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "two.nii.gz")[0].array, GREY)


def test_sform_wins_over_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(GREY, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-1, 1, 1, 1.0]), 1)
    nib.save(image, tmp_path / "x.nii.gz")
    volume, _, warnings = read_image(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert "sform is used" in warnings[0]


def test_sheared_and_oblique_affines_are_accepted(tmp_path: Path) -> None:
    sheared, oblique = AFFINE.copy(), AFFINE.copy()
    sheared[1, 1] = 0.4
    c, s = np.cos(0.3), np.sin(0.3)
    oblique[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    for name, matrix in (("s", sheared), ("o", oblique)):
        image = nib.Nifti1Image(GREY, matrix)
        image.set_sform(matrix, 1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        volume, _, warnings = read_image(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(volume.affine, matrix, atol=1e-6)
        assert not warnings


def test_no_orientation_at_all_is_said(tmp_path: Path) -> None:
    path = pixdim(tmp_path / "x.nii", 2.0)
    volume, _, warnings = read_image(path)
    assert volume.zoom == (1.0, 2.0, 1.0) and "left/right" in warnings[0]


def test_wrong_voxel_sizes_beside_a_good_sform_are_ignored(tmp_path: Path) -> None:
    path = rewritten(save(tmp_path / "x.nii"), lambda h: h["pixdim"].__setitem__(1, 0))
    volume, _, warnings = read_image(path)
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert "sform" in warnings[0]


def test_metres_become_millimetres(tmp_path: Path) -> None:
    matrix = AFFINE.copy()
    matrix[:3] /= 1000
    image = nib.Nifti1Image(GREY, matrix)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "x.nii")
    volume, _, warnings = read_image(tmp_path / "x.nii")
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-5)
    assert "metres" in warnings[0]


def process(tmp_path: Path, scan: Volume, truth: Volume, **how: object) -> ErrCode:
    path = tmp_path / "sub-x_T2w.nii.gz"
    nib.save(nib.Nifti1Image(scan.array, scan.affine), path)
    return process_img_nii(path, Oracle(truth), ByHeight(), proc_sem_n4_bias_correction=False, **how)[-1]  # type: ignore[arg-type]


def test_no_spine_is_empty_with_advice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, truth = spine(2)
    assert process(tmp_path, scan, truth.with_array(np.zeros_like(truth.array))) == ErrCode.EMPTY
    assert "No spine" in caplog.text
    only_canal = truth.with_array(np.where(truth.array == 61, 61, 0).astype(np.uint8))
    assert process(tmp_path, scan, only_canal) == ErrCode.EMPTY
    assert [p.name for p in tmp_path.rglob("*")] == ["sub-x_T2w.nii.gz"]


def test_three_slices(tmp_path: Path) -> None:
    scan, truth = spine(2)
    box = (slice(0, scan.shape[0]), slice(0, scan.shape[1]), slice(6, 9))
    assert process(tmp_path, scan.cropped(box), truth) == ErrCode.OK


def test_two_thousand_slices(tmp_path: Path) -> None:
    _, truth = spine(2)
    stretched = np.repeat(truth.array[::4, ::4], 125, axis=2)
    affine = AFFINE @ np.diag([4, 4, 1 / 125, 1])
    scan = Volume((stretched * 3).astype(np.int16), affine)
    assert scan.shape[2] == 2000
    assert process(tmp_path, scan, truth, ignore_compatibility_issues=True) == ErrCode.OK


def test_models_of_the_wrong_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, truth = spine(2)
    path = tmp_path / "sub-x_T2w.nii.gz"
    nib.save(nib.Nifti1Image(scan.array, scan.affine), path)
    semantic, instance = Oracle(truth), ByHeight()
    for pair in ((instance, instance), (semantic, semantic)):
        assert process_img_nii(path, *pair)[1] == ErrCode.COMPATIBILITY  # type: ignore[arg-type]
    assert "spineps models list" in caplog.text
    assert [p.name for p in tmp_path.rglob("*")] == ["sub-x_T2w.nii.gz"]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("sub-x_T2w.nii.gz", True),
        ("myscan.nii.gz", True),
        ("sub-x_ct.nii.gz", False),
        ("sub-x_acq-ax_T2w.nii.gz", False),
        ("sub-x_seg-vert_T2w.nii.gz", False),
        ("sub-x_label-6_T2w.nii.gz", False),
    ],
)
def test_scans_that_the_model_was_not_made_for(tmp_path: Path, name: str, fits: bool) -> None:
    scan, truth = spine(2)
    nib.save(nib.Nifti1Image(scan.array, scan.affine), tmp_path / name)
    how = {"proc_sem_n4_bias_correction": False}
    code = process_img_nii(tmp_path / name, Oracle(truth), ByHeight(), **how)[1]  # type: ignore[arg-type]
    assert code == (ErrCode.OK if fits else ErrCode.COMPATIBILITY)
    if not fits:
        code = process_img_nii(tmp_path / name, Oracle(truth), ByHeight(), ignore_compatibility_issues=True, **how)[1]  # type: ignore[arg-type]
        assert code == ErrCode.OK


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    scan, truth = spine(2)
    (tmp_path / "file").write_text("in the way")
    semantic = Oracle(truth)
    path = tmp_path / "sub-x_T2w.nii.gz"
    nib.save(nib.Nifti1Image(scan.array, scan.affine), path)
    assert process_img_nii(path, semantic, ByHeight(), derivative_name="file/out")[1] == ErrCode.WRITE  # type: ignore[arg-type]
    assert semantic.calls == 0  # found before the work, not after it


@pytest.mark.parametrize("writes", [3, 6])
def test_disk_full_in_the_middle_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    real, count = os.fsync, 0

    def fills_up(handle: int) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fills_up)
    assert process(tmp_path, *spine(2)) == ErrCode.WRITE
    assert [p.name for p in tmp_path.rglob("*")] == ["sub-x_T2w.nii.gz"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scan, truth = spine(2)
    path = tmp_path / "sub-x_T2w.nii.gz"
    nib.save(nib.Nifti1Image(scan.array, scan.affine), path)
    tmp_path.chmod(0o555)
    try:
        assert process_img_nii(path, Oracle(truth), ByHeight())[1] == ErrCode.WRITE  # type: ignore[arg-type]
    finally:
        tmp_path.chmod(0o755)
    assert "permissions" in caplog.text
