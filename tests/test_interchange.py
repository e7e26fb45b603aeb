"""Masks and points for 3D Slicer and ITK-SNAP, and corrected masks back: never mirrored, never misnamed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from stubs import spine
from typer.testing import CliRunner

from spineps.cli.main import app
from spineps.errors import InputNotFoundError, OptionError, UnreadableInputError
from spineps.evaluation.export import export, find_results
from spineps.evaluation.pairs import find_pairs, masks_below
from spineps.evaluation.run import Settings, evaluate_pair, read_mask
from spineps.outputs.nifti import read_labels
from spineps.outputs.poi import poi_document
from spineps.outputs.slicer import CODES, code_of, markups, read_segmentation, segmentation_bytes
from spineps.outputs.writer import Writer
from spineps.phases.points import Point
from spineps.volume import Volume

CODES_48 = ["".join(p) for c in itertools.product("RL", "AP", "SI") for p in itertools.permutations(c)]


def mask(affine: np.ndarray | None = None) -> Volume:
    """L1 and L5, no two corners alike."""
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1, 2, 3] = 20
    labels[4:, 5, 6:] = 24
    labels[0, 0, 7] = 124
    if affine is None:
        affine = np.diag([0.7, 0.9, 3.0, 1.0])
        affine[:3, 3] = (-12, 34, 5)
    return Volume(labels, affine)


def turned(shear: float = 0.0) -> np.ndarray:
    """An oblique grid."""
    a, b = 0.4, 0.25
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([0.7, 0.9, 3.0])
    affine[0, 2] += shear
    affine[:3, 3] = (-12.5, 34.25, 5)
    return affine


def store(path: Path, volume: Volume, semantic: bool = False) -> Path:
    path.write_bytes(segmentation_bytes(volume, semantic))
    return path


def write_run(folder: Path) -> tuple[Volume, Volume]:
    """What a run leaves in its folder of results."""
    _, structures = spine(2)
    vertebrae = np.zeros(structures.shape, np.uint16)
    vertebrae[:, :36] = np.where(np.isin(structures.array[:, :36], (49, 41, 42)), 23, 0)
    vertebrae[:, 40:70] = np.where(np.isin(structures.array[:, 40:70], (49, 41, 42)), 24, 0)
    vertebrae[structures.array == 26] = 26
    named = structures.with_array(vertebrae)
    points = [Point(23, 50, (1.0, -2.0, 3.5), "L4 vertebral body", 0.8)]
    with Writer() as writer:
        writer.mask(folder / "sub-1_mod-T2w_seg-spine_msk.nii.gz", structures)
        writer.mask(folder / "sub-1_mod-T2w_seg-vert_msk.nii.gz", named)
        writer.json(folder / "sub-1_mod-T2w_seg-spine_ctd.json", poi_document(points, structures.grid))
        writer.json(folder / "sub-1_mod-T2w_seg-spine_prov.json", {"stages": {}})
    return structures, named


@pytest.mark.parametrize("code", CODES_48)
def test_there_and_back_in_every_orientation(tmp_path: Path, code: str) -> None:
    given = mask().reoriented(code)
    back, unknown = read_segmentation(store(tmp_path / "m.seg.nrrd", given))
    assert back.grid.same_as(given.grid, 1e-6) and not unknown
    np.testing.assert_array_equal(back.array, given.array)


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_there_and_back_on_oblique_grids(tmp_path: Path, shear: float) -> None:
    given = mask(turned(shear))
    path = store(tmp_path / "m.seg.nrrd", given)
    back, _ = read_segmentation(path)
    assert back.grid.same_as(given.grid, 1e-6)
    np.testing.assert_array_equal(back.array, given.array)
    assert path.read_bytes() == segmentation_bytes(given, False)


@pytest.mark.parametrize("affine", [None, turned(), np.diag([-1.0, 2, 3, 1])])
def test_slicerio_reads_places_names_colours_and_codes(tmp_path: Path, affine: np.ndarray | None) -> None:
    slicerio = pytest.importorskip("slicerio")
    given = mask(affine)
    read = slicerio.read_segmentation(str(store(tmp_path / "m.seg.nrrd", given)))
    np.testing.assert_array_equal(read["voxels"], given.array)
    lps = read["ijkToLPS"] @ [1, 2, 3, 1]
    np.testing.assert_allclose(lps[:3] * (-1, -1, 1), given.grid.to_world(np.array([1, 2, 3])), atol=1e-9)
    segments = {s["name"]: s for s in read["segments"]}
    assert list(segments) == ["L1", "L5", "disc below L5"]
    assert segments["L1"]["labelValue"] == 20 and segments["L1"]["terminology"]["type"] == [
        "SCT",
        "66794005",
        "L1 vertebra",
    ]
    assert all(0 <= value <= 1 for s in segments.values() for value in s["color"])
    geometry = next(p["value"] for p in read["conversionParameters"] if p["name"] == "Reference image geometry")
    np.testing.assert_allclose([float(v) for v in geometry.split(";")[:16]], given.affine.ravel())


def test_structures_carry_their_side(tmp_path: Path) -> None:
    slicerio = pytest.importorskip("slicerio")
    labels = mask()
    labels = labels.with_array(np.where(labels.array == 20, 43, np.where(labels.array > 0, 60, 0)))
    read = slicerio.read_segmentation(str(store(tmp_path / "m.seg.nrrd", labels, True)))
    left, cord = (s["terminology"] for s in read["segments"])
    assert left["typeModifier"][2] == "Left" and cord["type"][1] == "2748008"
    assert [s["name"] for s in read["segments"]] == ["costal process, left", "spinal cord"]


def test_codes_are_those_of_dicom() -> None:
    codes = pytest.importorskip("pydicom.sr.codedict").codes
    for keyword, (code, _) in CODES.items():
        assert getattr(codes.SCT, keyword).value == code, keyword


def slicer_file(path: Path, voxels: np.ndarray, segments: list[dict[str, Any]], **fields: str) -> Path:
    """A mask as Slicer saves it, written by another library."""
    directions = np.diag([-0.7, -0.9, 3.0])
    kinds = ["domain"] * 3
    if voxels.ndim == 4:
        directions, kinds = np.vstack([[np.nan] * 3, directions]), ["list", *kinds]
    header = {
        "space": "left-posterior-superior", "kinds": kinds, "space directions": directions,
        "space origin": [12.0, -34.0, 5.0], **fields,
    }  # fmt: skip
    for number, segment in enumerate(segments):
        header |= {f"Segment{number}_{key}": str(value) for key, value in segment.items()}
    nrrd.write(str(path), voxels, header)
    return path


def test_label_values_that_slicer_changed_do_not_matter(tmp_path: Path) -> None:
    given = mask().array
    renumbered = np.select([given == 20, given == 24, given == 124], [3, 1, 2], 0).astype(np.uint8)
    segments = [
        {"Name": "L5", "LabelValue": 1},
        {"Name": "Disc below  L5", "LabelValue": 2},
        {"Name": "lumbar one", "ID": "spineps_20", "LabelValue": 3},
    ]
    back, unknown = read_segmentation(slicer_file(tmp_path / "m.seg.nrrd", renumbered, segments))
    np.testing.assert_array_equal(back.array, given)
    assert back.grid.same_as(mask().grid) and not unknown


def test_a_renamed_segment_takes_its_new_name(tmp_path: Path) -> None:
    segments = [{"Name": "L2", "ID": "spineps_20", "LabelValue": 20}, {"Name": "Segment_1", "LabelValue": 24}]
    path = slicer_file(tmp_path / "m.seg.nrrd", mask().array, segments)
    back, unknown = read_segmentation(path)
    assert back.array[1, 2, 3] == 21 and set(np.unique(back.array)) == {0, 21}
    assert unknown == ["Segment_1"]


def test_overlapping_layers_and_a_cropped_file_come_back_on_the_grid_of_the_scan(tmp_path: Path) -> None:
    given = mask()
    small = given.array[:, 1:, 2:]
    layers = np.stack([np.where(small == 20, 1, 0), np.where(small == 24, 1, 0)]).astype(np.uint8)
    segments = [{"Name": "L1", "LabelValue": 1, "Layer": 0}, {"Name": "L5", "LabelValue": 1, "Layer": 1}]
    numbers = [*given.affine.ravel(), 0, 5, 0, 6, 0, 7]
    geometry = ";".join(str(v) for v in numbers)
    path = tmp_path / "m.seg.nrrd"
    fields = {"Segmentation_ConversionParameters": f"A|0|b&Reference image geometry|{geometry};|c&"}
    slicer_file(path, layers, segments, **fields)
    voxels, header = nrrd.read(str(path))
    header["space origin"] = np.array([12.0, -34.0 - 0.9, 5.0 + 6.0])
    nrrd.write(str(path), voxels, header)
    back, _ = read_segmentation(path)
    assert back.shape == given.shape and back.grid.same_as(given.grid)
    np.testing.assert_array_equal(back.array, np.where(given.array == 124, 0, given.array))


@pytest.mark.parametrize("segments", [[], [{"Name": "Segment_1", "LabelValue": 20}]])
def test_without_any_known_name_label_values_are_kept(tmp_path: Path, segments: list[dict[str, Any]]) -> None:
    back, _ = read_segmentation(slicer_file(tmp_path / "m.nrrd", mask().array, segments))
    np.testing.assert_array_equal(back.array, mask().array)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_mask(tmp_path / "none.seg.nrrd")
    (tmp_path / "bad.seg.nrrd").write_bytes(b"NRRD0004\ntype: uchar\n")
    with pytest.raises(UnreadableInputError):
        read_mask(tmp_path / "bad.seg.nrrd")


def test_points_lie_where_they_are_and_say_how_sure_they_are(tmp_path: Path) -> None:
    grid = mask(turned(0.2)).grid
    points = [
        Point(20, 50, (1.0, -2.0, 3.5), "L1 vertebral body", 0.91),
        Point(120, 100, (4, 5, 6), "disc below L1", 1),
    ]
    document = markups(json.loads(json.dumps(poi_document(points, grid))))
    (markup,) = document["markups"]
    assert (markup["type"], markup["coordinateSystem"]) == ("Fiducial", "LPS") and "v1.0.3" in document["@schema"]
    first, second = markup["controlPoints"]
    np.testing.assert_allclose(first["position"], (-1, 2, 3.5), atol=0.01)
    assert (first["label"], first["description"]) == ("L1 vertebral body", "confidence 0.91")
    np.testing.assert_allclose(second["position"], (-4, -5, 6), atol=0.01)


def test_every_name_of_ours_is_known_again() -> None:
    assert [code_of(name) for name in ("S1", "sacrum", "T13", "endplates of C2", "Inferior endplate", "arcus")] == [
        26, 26, 28, 202, 53, 41,
    ]  # fmt: skip
    assert code_of("Segment_1") is None


def test_the_results_of_a_run_are_found_from_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "derivatives_seg"
    write_run(folder)
    scan = tmp_path / "sub-1_T2w.nii.gz"
    scan.touch()
    places = [
        tmp_path,
        folder,
        scan,
        *(folder / f"sub-1_mod-T2w_seg-{n}" for n in ("vert_msk.nii.gz", "spine_prov.json")),
    ]
    found = [find_results(place) for place in places]
    assert all(len(one) == 1 and one[0] == found[0][0] for one in found)
    assert found[0][0].points is not None
    with pytest.raises(InputNotFoundError):
        find_results(tmp_path / "nowhere.nii.gz")
    with pytest.raises(OptionError):
        export(found[0][0], "word")


def test_export_and_a_corrected_mask_back(tmp_path: Path) -> None:
    folder, out = tmp_path / "derivatives_seg", tmp_path / "out"
    structures, vertebrae = write_run(folder)
    run = CliRunner().invoke(app, ["export", str(tmp_path), "--to", "slicer", "-o", str(out)])
    assert run.exit_code == 0, run.output
    names = sorted(p.name for p in out.iterdir())
    stem = "sub-1_mod-T2w_seg-"
    assert names == [f"{stem}spine_ctd.mrk.json", f"{stem}spine_msk.seg.nrrd", f"{stem}vert_msk.seg.nrrd"]
    for kind, given in (("spine", structures), ("vert", vertebrae)):
        source, back = out / f"{stem}{kind}_msk.seg.nrrd", tmp_path / f"{kind}.nii.gz"
        run = CliRunner().invoke(app, ["convert-labels", str(source), str(back)])
        assert run.exit_code == 0, run.output
        np.testing.assert_array_equal(read_labels(back).array, given.array)
    pairs, _ = find_pairs(out, folder)
    assert len(pairs) == 2
    assert all(evaluate_pair(pair, Settings()).score == 1 for pair in pairs)


def test_an_exported_copy_beside_its_mask_is_no_second_mask(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = masks_below(tmp_path)
    written, _ = export(find_results(tmp_path)[0], "slicer")
    assert all(path.parent == tmp_path for path in written)
    assert masks_below(tmp_path) == before


def test_other_tools_get_tables_and_numbers(tmp_path: Path) -> None:
    write_run(tmp_path)
    (found,) = find_results(tmp_path)
    written, _ = export(found, "itksnap", tmp_path / "o")
    text = {path.name: path.read_text() for path in written}
    assert '"vertebral body"' in text["sub-1_mod-T2w_seg-spine_msk.label.txt"]
    assert '"L5"' in text["sub-1_mod-T2w_seg-vert_msk.label.txt"]
    (path,), lost = export(found, "totalspineseg")
    assert path.name == "sub-1_mod-T2w_seg-totalspineseg_msk.nii.gz" and not lost
    assert set(np.unique(read_labels(path).array)) == {0, 1, 2, 44, 45, 50}
