"""DICOM series in, DICOM SEG out: where things lie, what is refused, and that no name gets out."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.spatial import cKDTree

from spineps.cli.main import main
from spineps.errors import GeometryError, InputNotFoundError, OptionError, ShapeError, UnreadableInputError
from spineps.outputs import snapshot
from spineps.outputs.dicom import series as series_module
from spineps.outputs.dicom.codes import STRUCTURES, instance_meaning, structure_meaning
from spineps.outputs.dicom.convert import convert, dicom_scan
from spineps.outputs.dicom.frames import frame_grid
from spineps.outputs.dicom.seg import INSTANCE_LABELS, STRUCTURE_LABELS, write_seg
from spineps.outputs.dicom.series import Series, choose, is_dicom, list_series, series_of, table, usable
from spineps.outputs.writer import Writer
from spineps.seg_run import segment
from spineps.volume import Volume

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("dcm2niix")

#: Every way of laying the axes of a volume along the body.
ALL_48 = [
    "".join(axis[flip] for axis, flip in zip(axes, flips, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]
LPS = np.array([-1.0, -1.0, 1.0])


def turned(degrees: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Affine of 1.2 x 0.7 x 2.5 mm, turned about two axes of the body."""
    a, b = np.radians(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([1.2, 0.7, 2.5])
    affine[:3, 3] = (-31.0, 12.0, 240.0)
    return affine


OBLIQUE = turned((11.0, -7.0))


def labels() -> np.ndarray:
    """Three labels, no symmetry."""
    array = np.zeros((9, 8, 7), np.uint16)
    array[1:6, 2:7, 1:3] = 20
    array[1:6, 2:7, 3] = 120
    array[2:7, 3:7, 4:6] = 21
    array[8, 0, 6] = 26
    array[0, 7, 0] = 221
    return array


MASK = Volume(labels(), OBLIQUE)


def save(path: Path, mask: Volume) -> Path:
    with Writer() as writer:
        writer.mask(path, mask)
    return path


def source(folder: Path, volume: Volume, **how: Any) -> Series:
    """A series whose frames run along the volume's last axis."""
    write_series(folder, volume.array, volume.affine, **how)
    return usable(series_of(folder))


def points(path: Path) -> dict[str, set[tuple[float, ...]]]:
    """Millimetres (RAS) of all pixels of every segment, read with pydicom alone."""
    seg = pydicom.dcmread(path)
    pixels = np.atleast_3d(seg.pixel_array).reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    names = {s.SegmentNumber: s.SegmentLabel for s in seg.SegmentSequence}
    found: dict[str, set[tuple[float, ...]]] = {}
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        height, width = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for number in np.unique(frame[frame > 0]):
            rows, columns = np.nonzero(frame == number)
            spots = place + columns[:, None] * width * cosines[0] + rows[:, None] * height * cosines[1]
            identity = group.get("SegmentIdentificationSequence")
            name = names[identity[0].ReferencedSegmentNumber if identity else int(number)]
            found.setdefault(name, set()).update(map(tuple, np.round(spots * LPS, 2) + 0.0))
    return found


def expected(mask: Volume) -> dict[str, set[tuple[float, ...]]]:
    return {
        instance_meaning(int(v), ()).label: set(
            map(tuple, np.round(apply_affine(mask.affine, np.argwhere(mask.array == v)), 2) + 0.0)
        )
        for v in np.unique(mask.array)
        if v
    }


def near(first: dict[str, set], second: dict[str, set]) -> bool:
    """Equal to 0.03 mm: DICOM writes decimals."""
    if first.keys() != second.keys():
        return False
    for name in first:
        a, b = (np.array(list(side[name])) for side in (first, second))
        if len(a) != len(b) or cKDTree(a).query(b)[0].max() > 0.03:
            return False
    return True


class TestNeverMirrored:
    @pytest.mark.parametrize("axcodes", ALL_48)
    def test_every_orientation_there_and_back(self, axcodes: str, tmp_path: Path) -> None:
        mask = save(tmp_path / "m_seg-vert_msk.nii.gz", MASK.reoriented("RAS"))
        write_seg(mask, source(tmp_path / "s", MASK.reoriented(axcodes)), tmp_path / "o.dcm")
        assert near(points(tmp_path / "o.dcm"), expected(MASK))

    @pytest.mark.parametrize("labelmap", [False, True])
    def test_enhanced_multi_frame_in_any_order(self, labelmap: bool, tmp_path: Path) -> None:
        volume = MASK.reoriented("PIL")
        found = source(
            tmp_path / "s", volume, enhanced=True, order=np.random.default_rng(0).permutation(volume.shape[2])
        )
        write_seg(save(tmp_path / "m.nii.gz", MASK), found, tmp_path / "o.dcm", labelmap)
        assert near(points(tmp_path / "o.dcm"), expected(MASK))

    @settings(max_examples=8)
    @given(
        degrees=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
        shift=st.floats(-1.5, 1.5),
        seed=st.integers(0, 99),
        flip=st.booleans(),
    )
    def test_tilt_and_instance_order(
        self,
        degrees: tuple[float, float],
        shift: float,
        seed: int,
        flip: bool,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        """Each source pixel gets the label of the mask's voxel that its centre lies in, whatever the gantry did."""
        folder = tmp_path_factory.mktemp("tilt")
        affine = turned(degrees)
        affine[:3, 2] = affine[:3, 2] * (-1 if flip else 1) + affine[:3, 1] * shift
        grid = Volume(np.zeros((9, 8, 7)), affine)
        found = source(folder / "s", grid, modality="CT", order=np.random.default_rng(seed).permutation(7))
        mask = Volume(labels(), turned(degrees))
        with contextlib.suppress(ShapeError):  # tilted out of the mask
            write_seg(save(folder / "m.nii.gz", mask), found, folder / "o.dcm")
        spacing = 2.5  # perpendicular to the slices, whatever the shear
        if (folder / "o.dcm").exists():
            shared = pydicom.dcmread(folder / "o.dcm").SharedFunctionalGroupsSequence[0]
            assert abs(float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) - spacing) < 1e-3
        every = grid.grid.to_world(np.stack(np.meshgrid(*map(range, grid.shape), indexing="ij"), -1).reshape(-1, 3))
        index = mask.grid.to_index(every)
        inside = np.all((index > -0.5) & (index < np.array(mask.shape) - 0.5), axis=1)
        safe = np.abs(np.abs(index - np.rint(index)) - 0.5).min(axis=1) > 1e-3  # not on the border of two voxels
        cell = np.rint(index).astype(int).clip(0, np.array(mask.shape) - 1)
        wanted: dict[str, list] = {}
        for spot, ok, value in zip(every, inside & safe, mask.array[tuple(cell.T)], strict=True):
            if ok and value:
                wanted.setdefault(instance_meaning(int(value), ()).label, []).append(spot)
        got = points(folder / "o.dcm") if wanted else {}
        for name, spots in wanted.items():
            assert cKDTree(np.array(list(got[name]))).query(spots)[0].max() < 0.03

    def test_dcmqi_reads_the_same_mask(self, tmp_path: Path) -> None:
        if shutil.which("segimage2itkimage") is None:
            pytest.skip("dcmqi is not installed")
        write_seg(save(tmp_path / "m.nii.gz", MASK), source(tmp_path / "s", MASK.reoriented("PIL")), tmp_path / "o.dcm")
        arguments = ["--mergeSegments", "-t", "nii", "--outputDirectory", tmp_path, "--inputDICOM", tmp_path / "o.dcm"]
        subprocess.run(["segimage2itkimage", *map(str, arguments)], check=True, capture_output=True)
        made: Any = nib.load(tmp_path / "1.nii.gz")
        back = Volume(np.asarray(made.dataobj), made.affine).on(MASK.grid).array
        for number, value in enumerate((20, 21, 26, 120, 221), 1):
            assert np.array_equal(back == number, MASK.array == value)


class TestSegment:
    @pytest.fixture
    def seg(self, tmp_path: Path) -> Any:
        found = source(tmp_path / "s", MASK.reoriented("PIL"))
        mask = save(tmp_path / "sub-1_seg-vert_msk.nii.gz", MASK)
        record = {
            "format": 1,
            "stages": {"final": {"files": {mask.name: {}}}},
            "models": {"semantic": {"name": "t2w", "fingerprint": "abc123"}},
        }
        (tmp_path / "sub-1_prov.json").write_text(json.dumps(record))
        assert write_seg(mask, found, tmp_path / "o.dcm") == []
        write_seg(mask, found, tmp_path / "again.dcm")
        return pydicom.dcmread(tmp_path / "o.dcm"), pydicom.dcmread(tmp_path / "again.dcm"), found

    def test_says_what_and_who(self, seg: Any) -> None:
        first, again, found = seg
        assert (first.Modality, first.SegmentationType, first.SegmentsOverlap) == ("SEG", "BINARY", "NO")
        assert first.SOPInstanceUID == again.SOPInstanceUID
        assert first.StudyInstanceUID == found.study and first.SeriesInstanceUID != found.uid
        assert first.FrameOfReferenceUID == found.study + ".7"
        l1 = first.SegmentSequence[0]
        assert (l1.SegmentLabel, l1.SegmentedPropertyTypeCodeSequence[0].CodeValue) == ("L1", "66794005")
        assert l1.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
        assert l1.SegmentAlgorithmType == "AUTOMATIC" and len(l1.RecommendedDisplayCIELabValue) == 3
        assert "abc123" in l1.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        assert len({s.TrackingUID for s in first.SegmentSequence}) == len(first.SegmentSequence)
        assert l1.TrackingUID == again.SegmentSequence[0].TrackingUID

    def test_frames_name_their_picture(self, seg: Any) -> None:
        for group in seg[0].PerFrameFunctionalGroupsSequence:
            uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            picture = next(p for p in map(pydicom.dcmread, seg[2].files) if uid == p.SOPInstanceUID)
            assert np.allclose(
                group.PlanePositionSequence[0].ImagePositionPatient, picture.ImagePositionPatient, atol=1e-3
            )

    def test_every_label_has_a_code_of_the_dictionary(self) -> None:
        from pydicom.sr.codedict import codes

        meanings = [structure_meaning(v) for v in STRUCTURE_LABELS]
        meanings += [instance_meaning(v, INSTANCE_LABELS) for v in INSTANCE_LABELS]
        meanings += [instance_meaning(v, ()) for v in INSTANCE_LABELS]
        for meaning in meanings:
            for keyword in filter(None, (meaning.type, meaning.side, meaning.region)):
                assert getattr(codes.SCT, keyword).scheme_designator == "SCT", keyword
        assert structure_meaning(44).side == "Right" and STRUCTURES[44] == STRUCTURES[43]

    @pytest.mark.parametrize(
        ("label", "present", "code"),
        [(119, {19, 20}, "T12L1Disc"), (119, {19, 28, 20}, "Spine"), (128, {28, 20}, "Spine"),
         (123, {23, 26}, "Spine"), (123, {23}, "L4L5Disc"), (28, {28}, "Vertebra"), (25, {25}, "Vertebra")],
    )  # fmt: skip
    def test_unusual_spines_get_no_wrong_code(self, label: int, present: set[int], code: str) -> None:
        assert instance_meaning(label, present).type == code

    def test_refusals(self, tmp_path: Path) -> None:
        found = source(tmp_path / "s", MASK.reoriented("PIL"))
        grey = MASK.with_array(np.random.default_rng(0).integers(0, 900, MASK.shape).astype(np.uint16))
        with pytest.raises(OptionError, match="neither a structure nor a vertebra"):
            write_seg(save(tmp_path / "grey.nii.gz", grey), found, tmp_path / "o.dcm")
        away = MASK.affine.copy()
        away[2, 3] += 500
        with pytest.raises(ShapeError, match="nowhere"):
            write_seg(save(tmp_path / "away.nii.gz", Volume(MASK.array, away)), found, tmp_path / "o.dcm")
        away[2, 3] -= 494
        warnings = write_seg(save(tmp_path / "half.nii.gz", Volume(MASK.array, away)), found, tmp_path / "o.dcm")
        assert len(warnings) == 1 and "of the mask's volume" in warnings[0]

    def test_what_anonymisers_delete(self, tmp_path: Path) -> None:
        found = source(tmp_path / "s", MASK.reoriented("PIL"))
        mask = save(tmp_path / "m.nii.gz", MASK)
        strip(found.files, "PatientName", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyTime")
        write_seg(mask, found, tmp_path / "o.dcm")
        strip(found.files, "FrameOfReferenceUID")
        with pytest.raises(UnreadableInputError, match="frame of reference"):
            write_seg(mask, found, tmp_path / "o.dcm")


def strip(files: list[Path], *names: str, **values: str) -> None:
    for file in files:
        head = pydicom.dcmread(file)
        for name in names:
            delattr(head, name)
        for name, value in values.items():
            setattr(head, name, value)
        head.save_as(file)


class TestConversion:
    @pytest.mark.parametrize("axcodes", ALL_48[::4])
    def test_values_lie_where_the_frames_say(self, axcodes: str, tmp_path: Path) -> None:
        array = np.random.default_rng(1).integers(0, 999, MASK.shape)
        volume = Volume(array, OBLIQUE).reoriented(axcodes)
        made, _ = convert(source(tmp_path, volume, modality="CT", slope=(1.0, -1024.0)))
        assert np.array_equal(made.on(volume.grid).array, volume.array) and made.array.dtype == np.int16

    @pytest.mark.parametrize(
        "how", [{"enhanced": True}, {"syntax": "1.2.840.10008.1.2.5"}, {"syntax": "1.2.840.10008.1.2.4.80"}]
    )
    def test_kinds_of_file(self, how: dict[str, Any], tmp_path: Path) -> None:
        volume = Volume(np.random.default_rng(1).integers(0, 999, (16, 12, 7)), OBLIQUE)
        made, _ = convert(source(tmp_path, volume, **how))
        assert np.array_equal(made.on(volume.grid).array, volume.array)

    def test_gantry_tilt_is_straightened(self, tmp_path: Path) -> None:
        affine = np.array([[-1, 0, 0, 20], [0, -1, 1.5 * np.tan(np.radians(18)), 30], [0, 0, 1.5, -10], [0, 0, 0, 1.0]])
        tilted = Volume(np.zeros((40, 48, 20)), affine)
        where = tilted.grid.to_world(np.stack(np.meshgrid(*map(range, tilted.shape), indexing="ij"), -1))
        smooth = 500 * np.sin(where[..., 0] / 9) * np.cos(where[..., 1] / 7) + 10 * where[..., 2]
        found = source(tmp_path, tilted.with_array(smooth), modality="CT", GantryDetectorTilt=18.0)
        made, _ = convert(found)
        back = made.on(tilted.grid, order=1).array
        assert abs(made.affine[1, 2]) < 1e-6 and np.abs(back - smooth)[2:-2, 2:-2, 1:-1].max() < 15

    def test_sheared_mr_is_refused(self, tmp_path: Path) -> None:
        """dcm2niix would put it in the wrong place without a word."""
        affine = np.array([[-1, 0, 0, 20], [0, -1, 0.8, 30], [0, 0, 3, -10], [0, 0, 0, 1.0]])
        found = source(tmp_path, Volume(np.random.default_rng(1).integers(0, 99, (16, 16, 8)), affine))
        with pytest.raises(GeometryError, match="does not place series 3"):
            convert(found)

    def test_truncated_pixels(self, tmp_path: Path) -> None:
        found = source(tmp_path, Volume(np.random.default_rng(1).integers(0, 99, (64, 64, 8)), OBLIQUE))
        for file in found.files:
            file.write_bytes(file.read_bytes()[:-6000])
        with pytest.raises(UnreadableInputError, match="dcm2niix cannot convert series 3"):
            convert(found)


class TestSeries:
    VOLUME = Volume(np.random.default_rng(1).integers(0, 99, (16, 12, 7)), OBLIQUE)

    def write(self, folder: Path, **how: Any) -> str:
        return write_series(folder, self.VOLUME.array, self.VOLUME.affine, **how)

    def test_one_of_many(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", number=1, description="loc", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        uid = self.write(tmp_path / "b" / "c", number=4, description="sag T2 tse")
        (tmp_path / "b" / "notes.txt").write_text("DICM")
        found = list_series(tmp_path)
        assert [s.why_not for s in found] == ["localiser", ""] and [len(s.frames) for s in found] == [7, 7]
        assert choose(found) is found[1] and found[1].format == "T2w"
        assert "localiser" in table(found) and "RAS" in table(found) and "1.2 x 0.7 x 2.5" in table(found)
        assert all(choose(found, wanted) is found[1] for wanted in ("4", uid, "T2", "SAG t2"))
        assert choose(found, "1") is found[0]
        with pytest.raises(OptionError, match="No series is called '9'") as error:
            choose(found, "9")
        assert "sag T2 tse" in str(error.value) and "--series" in str(error.value)

    def test_several_are_listed(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", number=4, description="t2 sag")
        self.write(tmp_path / "b", number=5, description="t1 sag")
        with pytest.raises(OptionError, match="2 series that can be a spine") as error:
            series_of(tmp_path)
        assert "t1 sag" in str(error.value)
        slice_ = next((tmp_path / "b").iterdir())
        assert series_of(slice_).number == 5 and series_of(tmp_path, "t1").format == "T1w"

    def test_echoes_are_volumes_of_their_own(self, tmp_path: Path) -> None:
        uid = self.write(tmp_path / "a", EchoTime=10.0)
        self.write(tmp_path / "b", EchoTime=20.0)
        for file in (tmp_path / "b").iterdir():
            head = pydicom.dcmread(file)
            head.SeriesInstanceUID = uid
            head.save_as(file)
        found = list_series(tmp_path)
        assert [(s.key, s.description) for s in found] == [
            ("3.1", "t2_tse_sag (TE 10, M)"),
            ("3.2", "t2_tse_sag (TE 20, M)"),
        ]
        assert convert(choose(found, "3.2"))[0].shape == (16, 12, 7)

    def test_a_scout_inside_a_series(self, tmp_path: Path) -> None:
        uid = self.write(tmp_path / "a", modality="CT")
        scout = np.zeros((30, 40, 1))
        write_series(tmp_path / "b", scout, OBLIQUE, modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        head = pydicom.dcmread(next((tmp_path / "b").iterdir()))
        head.SeriesInstanceUID = uid
        head.save_as(tmp_path / "b" / "IM0001_3")
        assert series_of(tmp_path).shape == (16, 12) and len(list_series(tmp_path)) == 2

    def test_two_echoes_in_one_file(self, tmp_path: Path) -> None:
        self.write(tmp_path, enhanced=True, order=[*range(7), *range(7)])
        head = pydicom.dcmread(tmp_path / "enhanced.dcm")
        for k, group in enumerate(head.PerFrameFunctionalGroupsSequence):
            group.MREchoSequence = [pydicom.Dataset()]
            group.MREchoSequence[0].EffectiveEchoTime = 10.0 if k < 7 else 20.0
        head.save_as(tmp_path / "enhanced.dcm")
        found = list_series(tmp_path)
        assert [(s.key, s.why_not) for s in found] == [(k, "several volumes in one file") for k in ("3.1", "3.2")]
        with pytest.raises(GeometryError, match="several volumes in one file"):  # dcm2niix would stack them
            usable(found[0])
        with pytest.raises(UnreadableInputError, match="several volumes"):
            write_seg(save(tmp_path / "m.nii.gz", MASK), found[0], tmp_path / "o.dcm")

    def test_copies_count_once(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a")
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        assert len(usable(series_of(tmp_path)).frames) == 7

    @pytest.mark.parametrize(
        ("fault", "message"),
        [("gap", r"1 slice\(s\) missing"), ("twice", "2 images at one place"), ("fan", "several directions"),
         ("drift", "slices shifted")],
    )  # fmt: skip
    def test_faults_of_geometry(self, fault: str, message: str, tmp_path: Path) -> None:
        self.write(tmp_path)
        files = sorted(tmp_path.iterdir())
        heads = [pydicom.dcmread(file) for file in files]
        if fault == "gap":
            files[3].unlink()
        for k, (file, head) in enumerate(zip(files, heads, strict=True)):
            if fault == "twice":
                head.SOPInstanceUID = f"1.2.3.{k}"
                head.save_as(tmp_path / f"again{k}")
            elif fault == "fan" and k > 3:
                head.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
                head.save_as(file)
            elif fault == "drift" and k == 3:
                step = np.array(head.ImageOrientationPatient[:3], float) * 2
                head.ImagePositionPatient = list(np.array(head.ImagePositionPatient, float) + step)
                head.save_as(file)
        with pytest.raises(GeometryError, match=message) as error:
            usable(series_of(tmp_path))
        assert error.value.cure

    def test_what_is_no_image(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", number=9)
        strip(list_series(tmp_path)[0].files, "ImagePositionPatient", Modality="SR")
        found = list_series(tmp_path)
        assert found[0].why_not == "SR, not CT or MR" and not found[0].frames
        with pytest.raises(UnreadableInputError):
            usable(choose(found, "9"))

    def test_what_is_no_dicom(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "x").write_bytes(b"no")
        assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "x") and not is_dicom(tmp_path / "none")
        with pytest.raises(InputNotFoundError):
            list_series(tmp_path)
        (tmp_path / "x").write_bytes(bytes(128) + b"DICM garbage")
        assert is_dicom(tmp_path)
        with pytest.raises(InputNotFoundError):
            list_series(tmp_path)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(OptionError, match="pydicom") as error:
            list_series(tmp_path)
        assert error.value.cure == series_module.INSTALL


class TestRun:
    @pytest.fixture(autouse=True)
    def small_pictures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot, "HEIGHT", 1.5)

    @pytest.mark.parametrize("layout", ["published", "bids"])
    def test_folder_to_masks_and_back(self, layout: str, tmp_path: Path) -> None:
        """The whole way with models that know the answer; the patient's name stays where it was."""
        from stubs import ByHeight, Oracle, spine

        scan, truth = spine(3)
        folder = tmp_path / "erika_MUSTERMANN"
        write_series(folder, scan.reoriented("PIL").array, scan.reoriented("PIL").affine, number=7)
        how: dict[str, Any] = {"model_semantic": Oracle(truth), "model_instance": ByHeight(), "model_labeling": None}
        how |= {"layout": layout, "dicom_seg": True, "proc_sem_n4_bias_correction": False}
        result = segment(folder, **how)
        assert result.success and result.errcode == "OK", result.error
        scans = [p for p in tmp_path.rglob("*_T2w.nii.gz") if "_seg-" not in p.name]
        assert len(scans) == 1 and "sequ-7" in scans[0].name
        if layout == "bids":  # the same words for every scan of the data set
            derivative = tmp_path / "derivatives" / "spineps"
            raw = json.loads((derivative / "dataset_description.json").read_text())["DatasetLinks"]["raw"]
            wanted = json.loads(result.output_paths["out_vert_json"].read_text())["Sources"][0].removeprefix(
                "bids:raw:"
            )
            assert raw == "work" and derivative / raw / wanted == scans[0]
        for path in [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(folder)]:
            assert "mustermann" not in str(path.relative_to(tmp_path)).lower()
            if path.suffix != ".dcm":  # a SEG belongs to its patient, as the standard wants it
                content = nib.load(path).header.binaryblock if path.name.endswith(".nii.gz") else path.read_bytes()
                assert b"mustermann" not in content.lower()
        read: Any = nib.load(result.output_paths["out_vert"])
        mask = Volume(np.asarray(read.dataobj), read.affine)
        assert near(points(result.output_paths["out_vert_dicom"]), expected(mask))
        assert segment(folder, **how).errcode == "ALL_DONE"
        memory = segment(folder, **{**how, "dicom_seg": False}, output_in_memory=True)
        assert np.array_equal(memory.vertebrae.get_array(), mask.array)

    def test_commands(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source(tmp_path / "s", MASK.reoriented("PIL"))
        mask = save(tmp_path / "m_msk.nii.gz", MASK)
        for arguments in (["dicom-series", tmp_path / "s"], ["dicom-seg", mask, "--source", tmp_path / "s"]):
            with pytest.raises(SystemExit) as left:
                main([str(a) for a in arguments])
            assert left.value.code == 0
        assert "t2_tse_sag" in capsys.readouterr().out and (tmp_path / "m_msk.dcm").is_file()
        with pytest.raises(SystemExit) as left:
            main(["sample", "-i", str(mask), "--dicom-seg"])
        assert left.value.code == 20 and "DICOM input" in capsys.readouterr().err

    def test_folder_of_a_person_gets_another_name(self, tmp_path: Path) -> None:
        volume = TestSeries.VOLUME
        write_series(tmp_path / "P0012", volume.array, volume.affine)
        write_series(tmp_path / "Mustermann", volume.array, volume.affine)
        names = [dicom_scan(tmp_path / folder)[0].entities["sub"] for folder in ("P0012", "Mustermann")]
        assert names[0] == "P0012" and names[1].startswith("anon")


def test_a_frame_is_a_grid_of_one_slice(tmp_path: Path) -> None:
    found = source(tmp_path, TestSeries.VOLUME)
    assert found.grid is not None and found.grid.same_as(TestSeries.VOLUME.grid)
    assert np.allclose(frame_grid(found.frames[2], found.shape).to_world(np.zeros(3)), found.grid.to_world([0, 0, 2]))
