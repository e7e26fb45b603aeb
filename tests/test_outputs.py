"""Names, reading, atomic writing, provenance and points."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from stubs import AFFINE, spine

from spineps.errors import InputNotFoundError, OutputError
from spineps.outputs import provenance
from spineps.outputs.nifti import from_memory, read_image, read_labels
from spineps.outputs.paths import output_paths, scan_from
from spineps.outputs.poi import poi_document, poi_object
from spineps.outputs.writer import SUFFIX, Writer, check_writable, remove_leftovers
from spineps.phases.points import Point
from spineps.volume import Volume

CODES = ["".join(c) for c in itertools.product("RL", "AP", "SI")]
ALL_48 = ["".join(p) for c in CODES for p in itertools.permutations(c)]

# Recorded from SPINEPS 2.1.3: (scan below the data set, derivative folder, folder of the results, name of the mask)
RECORDED = [
    ("sub-test_T2w.nii.gz", "derivatives_seg", "derivatives_seg", "sub-test_mod-T2w_seg-spine_msk.nii.gz"),
    ("sub-test_T2w.nii.gz", "my_out", "my_out", "sub-test_mod-T2w_seg-spine_msk.nii.gz"),
    (
        "rawdata/sub-01/ses-02/sub-01_ses-02_sequ-301_T2w.nii.gz",
        "derivatives_seg",
        "derivatives_seg/sub-01/ses-02",
        "sub-01_ses-02_sequ-301_mod-T2w_seg-spine_msk.nii.gz",
    ),
    ("myscan.nii.gz", "derivatives_seg", "derivatives_seg", "sub-myscan_mod-myscan_seg-spine_msk.nii.gz"),
    ("sub-x_T2w.nii", "derivatives_seg", "derivatives_seg", "sub-x_mod-T2w_seg-spine_msk.nii.gz"),
    (
        "sub-x_acq-sag_chunk-HWS_run-2_T2w.nii.gz",
        "derivatives_seg",
        "derivatives_seg",
        "sub-x_acq-sag_chunk-HWS_mod-T2w_seg-spine_run-2_msk.nii.gz",
    ),
    ("sub-x_foo-bar_T2w.nii.gz", "derivatives_seg", "derivatives_seg", "sub-x_mod-T2w_seg-spine_foo-bar_msk.nii.gz"),
    # 2.1.3 crashes on dots; spaces and dots become hyphens here.
    ("my scan.v2.nii.gz", "derivatives_seg", "derivatives_seg", "sub-my-scan-v2_mod-my-scan-v2_seg-spine_msk.nii.gz"),
]


@pytest.mark.parametrize(("name", "derivative", "folder", "mask"), RECORDED)
def test_names_are_those_of_the_published_system(
    tmp_path: Path, name: str, derivative: str, folder: str, mask: str
) -> None:
    paths = output_paths(scan_from(tmp_path / name, dataset=tmp_path), derivative)
    here = tmp_path / folder
    form = mask.partition("_mod-")[2].partition("_")[0]
    assert paths["out_spine"] == here / mask
    assert paths["out_vert"] == here / mask.replace("seg-spine", "seg-vert")
    assert paths["out_ctd"] == here / mask.replace("msk.nii.gz", "ctd.json")
    assert paths["out_snap"] == paths["out_snap2"] == here / mask.replace("msk.nii.gz", "snp.png")
    assert paths["out_raw"] == here / f"output_raw_{form}"
    assert paths["out_debug"] == here / f"debug_{form}"
    assert paths["out_spine_raw"] == paths["out_raw"] / mask.replace("seg-spine", "seg-spine-raw")
    assert paths["out_vert_raw"] == paths["out_raw"] / mask.replace("seg-spine", "seg-vert-raw")
    assert paths["out_logits"] == paths["out_raw"] / mask.replace("msk.nii.gz", "logit.npz")
    assert paths["out_vibeseg"] == here / mask.replace("seg-spine", "seg-VIBESeg-100")
    assert len(set(paths.values())) == len(paths) - 1


def test_default_data_set_is_the_folder_of_the_scan(tmp_path: Path) -> None:
    paths = output_paths(scan_from(tmp_path / "rawdata" / "sub-1" / "sub-1_T2w.nii.gz"))
    assert paths["out_spine"].parent == tmp_path / "rawdata" / "sub-1" / "derivatives_seg"


def test_bids_file_and_missing_suffix_are_accepted(tmp_path: Path) -> None:
    from TPTBox import BIDS_FILE

    scan = tmp_path / "rawdata" / "sub-1" / "sub-1_T2w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"")
    from_bids = scan_from(BIDS_FILE(scan, tmp_path, verbose=False))
    assert (from_bids.path, from_bids.dataset) == (scan, tmp_path)
    assert scan_from(scan.with_name("sub-1_T2w")).path == scan
    dotted = scan_from(BIDS_FILE(tmp_path / "my scan.v2.nii.gz", tmp_path, verbose=False))
    assert dotted.path.name == "my scan.v2.nii.gz"
    with pytest.raises(InputNotFoundError):
        scan_from(BIDS_FILE(tmp_path / "sub-1_T2w.json", tmp_path, verbose=False))
    with pytest.raises(TypeError):
        scan_from(5)


def mask_on(axcodes: str = "PIR") -> Volume:
    array = np.random.default_rng(0).integers(0, 230, (7, 9, 11)).astype(np.uint16)
    return Volume(array, AFFINE).reoriented(axcodes)


@pytest.mark.parametrize("axcodes", ALL_48)
def test_masks_keep_the_grid_of_the_input(tmp_path: Path, axcodes: str) -> None:
    mask = mask_on(axcodes)
    with Writer() as writer:
        writer.mask(tmp_path / "m.nii.gz", mask)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.get_data_dtype() == np.uint16
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (2, 2)
    assert "".join(nib.aff2axcodes(image.affine)) == axcodes
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask.array)


def test_shear_is_kept_in_the_sform_alone(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 0.4
    with Writer() as writer:
        writer.mask(tmp_path / "m.nii.gz", Volume(mask_on().array, affine))
    image = nib.load(tmp_path / "m.nii.gz")
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 2)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        with Writer() as writer:
            writer.mask(tmp_path / name, mask_on())
        time.sleep(0.01)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4)  # no name, no time


def test_all_files_or_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Writer() as writer:
        writer.json(tmp_path / "new" / "deep" / "a.json", {})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "may not be written"), (errno.EIO, "cannot")]
)
def test_write_errors_have_a_cure_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError, match=text) as caught, Writer() as writer:
        writer.mask(tmp_path / "out" / "m.nii.gz", mask_on())
    assert "derivative" in caught.value.cure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    code = """
import resource, sys, numpy as np
from pathlib import Path
from spineps.errors import OutputError
from spineps.outputs.writer import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with Writer() as writer:
        writer.json(Path(sys.argv[1]) / "small.json", {})
        writer.arrays(Path(sys.argv[1]) / "large.npz", x=np.random.default_rng(0).random(5000))
except OutputError as error:
    sys.exit(0 if "full" in str(error) else 3)
sys.exit(4)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_kill_in_the_middle_of_writing(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from spineps.outputs.writer import Writer
def slow(stream):
    stream.write(b"half"); stream.flush()
    print("writing", flush=True)
    time.sleep(60)
with Writer() as writer:
    writer.write(Path(sys.argv[1]) / "m.nii.gz", slow)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    assert remove_leftovers(tmp_path) == 0  # still being written
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(SUFFIX) and left.read_bytes() == b"half"
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_other_machines_go_after_a_day(tmp_path: Path) -> None:
    foreign = tmp_path / f".m.nii.gz.00000000-1{SUFFIX}"
    foreign.write_bytes(b"half")
    assert remove_leftovers(tmp_path) == 0
    os.utime(foreign, (1, 1))
    assert remove_leftovers(tmp_path) == 1


def test_records_vouch_only_for_what_was_written(tmp_path: Path) -> None:
    with Writer() as writer:
        writer.json(tmp_path / "sub" / "a.json", 1)
        entry = provenance.stage_entry("key", writer.written, tmp_path)
    record = {"stages": {"final": entry}}
    wanted = [tmp_path / "sub" / "a.json"]
    assert provenance.is_current(record, "final", "key", wanted, tmp_path)
    assert not provenance.is_current(record, "final", "other", wanted, tmp_path)
    assert not provenance.is_current(record, "final", "key", [*wanted, tmp_path / "b.json"], tmp_path)
    wanted[0].write_text("2\n")
    assert not provenance.is_current(record, "final", "key", wanted, tmp_path)
    (tmp_path / "prov.json").write_text("{ half")
    assert provenance.read_record(tmp_path / "prov.json") == provenance.read_record(tmp_path / "none.json") == {}


@pytest.mark.parametrize("shear", [0.0, 0.5])
def test_points_are_read_by_tptbox_and_lie_where_they_should(tmp_path: Path, shear: float) -> None:
    from TPTBox import POI

    affine = AFFINE.copy()
    affine[2, 0] = shear
    grid = Volume(np.zeros((40, 50, 12)), affine).grid
    index = np.array([10.25, 20.5, 3.0])
    world = grid.to_world(index)
    point = Point(20, 50, (world[0], world[1], world[2]), "L1 vertebral body", 0.91)
    document = poi_document([point], grid, {"version": "1"})
    with Writer() as writer:
        writer.json(tmp_path / "p_ctd.json", document)
        writer.json(tmp_path / "empty_ctd.json", poi_document([], grid))
    for poi in (POI.load(tmp_path / "p_ctd.json"), poi_object(document)):
        np.testing.assert_allclose(poi[20, 50], index, atol=1e-3)
        assert poi.orientation == ("P", "I", "R") and poi.shape == grid.shape
        assert poi.info["label_name"][20 if 20 in poi.info["label_name"] else "20"]
    np.testing.assert_allclose(POI.load(tmp_path / "p_ctd.json").to_global()[20, 50], world, atol=1e-2)
    header = json.loads((tmp_path / "p_ctd.json").read_text())[0]
    assert header["confidence"] == {"20,50": 0.91}
    assert header["label_name"]["20"] == {"name": "L1", "50": "L1 vertebral body"}
    assert len(POI.load(tmp_path / "empty_ctd.json")) == 0


def test_images_in_memory(tmp_path: Path) -> None:
    from TPTBox import NII

    image, _ = spine(2)
    nifti = nib.Nifti1Image(image.array, image.affine)
    for given in (nifti, NII(nifti), image):
        volume, info, warnings = from_memory(given)
        np.testing.assert_allclose(volume.array, image.array)
        assert volume.array.dtype == np.float32 and not warnings and len(info.sha256) == 64
    with pytest.raises(TypeError):
        from_memory("text")
    nib.save(nifti, tmp_path / "x.nii")
    assert read_image(tmp_path / "x.nii")[0].array.dtype == np.float32
    with Writer() as writer:
        writer.mask(tmp_path / "m.nii.gz", mask_on())
    np.testing.assert_array_equal(read_labels(tmp_path / "m.nii.gz").array, mask_on().array)


def test_a_copy_of_the_picture_in_its_own_folder_is_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_from(tmp_path / "sub-1_T2w.nii.gz", dataset=tmp_path)
    plain = output_paths(scan)
    monkeypatch.chdir(tmp_path)
    for layout in ("published", "bids"):
        plain = output_paths(scan, layout=layout)
        there = plain["out_snap"].parent
        for spelled in (there, there.relative_to(tmp_path), f"{there}/../{there.name}"):
            assert output_paths(scan, layout=layout, snapshot_copy_folder=spelled)["out_snap2"] == plain["out_snap"]
