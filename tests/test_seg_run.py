"""The documented entry points, with models that know the answer."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from stubs import ALL_MR, ByHeight, Oracle, config, spine

import spineps
from spineps import Acquisition, ErrCode, Modality, process_dataset, process_img_nii, segment
from spineps.dataset.job import Job, effective_options
from spineps.errors import InputNotFoundError, OptionError
from spineps.options import Options
from spineps.outputs import snapshot
from spineps.outputs.paths import output_paths, scan_from
from spineps.pipeline import Models, one_hot, segment_volume
from spineps.volume import Volume

FOUR = ("out_spine", "out_vert", "out_ctd", "out_snap")
SCAN, TRUTH = spine(3)
QUICK = {"proc_sem_n4_bias_correction": False}
SILENT = {**QUICK, "save_log_data": False}
T2W = {"modalities": (Modality.T2w,)}


def save(path: Path, volume: Volume = SCAN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.array, volume.affine), path)
    return path


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "HEIGHT", 1.5)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "sub-x_T2w.nii.gz")


@pytest.fixture
def models() -> tuple[Oracle, ByHeight]:
    return Oracle(TRUTH), ByHeight()


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def content(paths: dict[str, Path]) -> dict[str, bytes]:
    return {key: paths[key].read_bytes() for key in (*FOUR, "out_spine_raw", "out_vert_raw")}


# The order of SPINEPS 2.1.3 (section 1.2 and 1.3 of its specification); 1.x is a subset in the same order.
IMAGE_KEYWORDS = """
img_ref model_semantic model_instance model_labeling derivative_name save_modelres_mask save_softmax_logits
save_debug_data save_raw override_semantic override_instance override_postpair override_ctd proc_pad_size
proc_normalize_input crop auto_crop_to_spine auto_crop_when_max_res_leq auto_crop_req_crop_min_dim proc_sem_crop_input
proc_sem_n4_bias_correction proc_sem_remove_inferior_beyond_canal proc_sem_clean_beyond_largest_bounding_box
proc_sem_clean_small_cc_artifacts proc_sem_step_size proc_inst_corpus_clean proc_inst_clean_small_cc_artifacts
proc_inst_largest_k_cc proc_inst_detect_and_solve_merged_corpi proc_inst_batch_size proc_inst_amp
vertebra_instance_labeling_offset proc_lab_force_no_tl_anomaly proc_fill_3d_holes proc_assign_missing_cc
proc_assign_missing_cc_fast proc_clean_inst_by_sem proc_vertebra_inconsistency lambda_semantic snapshot_copy_folder
ignore_bids_filter ignore_compatibility_issues log_inference_time return_output_instead_of_save timing verbose _nii
_dataset_id_ct_crop
"""
DATASET_KEYWORDS = """
dataset_path model_instance model_semantic model_labeling rawdata_name derivative_name modalities save_debug_data
save_modelres_mask save_softmax_logits save_log_data override_semantic override_instance override_postpair
override_ctd snapshot_copy_folder pad_size
"""


def test_documented_signatures() -> None:
    image = list(inspect.signature(process_img_nii).parameters)
    documented = IMAGE_KEYWORDS.split()
    assert image[: len(documented)] == documented
    dataset = list(inspect.signature(process_dataset).parameters)
    first = DATASET_KEYWORDS.split()
    assert dataset[: len(first)] == first
    left_out = {"proc_normalize_input", "proc_assign_missing_cc_fast", "proc_pad_size"}
    assert {k for k in documented if k.startswith("proc_")} - left_out <= set(dataset)
    assert spineps.segment_image is spineps.process_img_nii is spineps.seg_run.process_img_nii
    assert all(hasattr(spineps, name) for name in spineps.__all__)
    with pytest.raises(AttributeError):
        _ = spineps.nonsense


def test_four_files_on_the_grid_of_the_scan(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    paths, code = process_img_nii(scan, *models, **QUICK)
    assert code == ErrCode.OK
    for key in FOUR:
        assert paths[key].is_file()
    for key in ("out_spine", "out_vert"):
        image = nib.load(paths[key])
        assert image.get_data_dtype() == np.uint16 and image.shape == SCAN.shape
        np.testing.assert_allclose(image.affine, SCAN.affine)
    semantic, vertebrae = load(paths["out_spine"]), load(paths["out_vert"])
    for label in (26, 49, 100, 61):
        both = (semantic == label).sum() + (TRUTH.array == label).sum()
        assert 2 * ((semantic == label) & (TRUTH.array == label)).sum() / both > 0.8
    assert {2, 3, 4, 26, 102, 103, 104} <= set(np.unique(vertebrae).tolist())
    raw = nib.load(paths["out_spine_raw"])
    assert "".join(nib.aff2axcodes(raw.affine)) == "PIR" and raw.get_data_dtype() == np.uint16
    header, points = json.loads(paths["out_ctd"].read_text())
    assert set(points) >= {"2", "3", "4", "26"} and header["proc_pad_size"] == "4"
    assert "not named" in header["warnings"][0]
    body = np.argwhere((TRUTH.array == 49) & (np.arange(SCAN.shape[1])[None, :, None] < 36)).mean(axis=0)
    np.testing.assert_allclose(points["2"]["50"], body, atol=1.0)


def test_nothing_tells_of_the_machine(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    paths, _ = process_img_nii(scan, *models, **QUICK)
    for key in ("out_ctd", "out_prov"):
        assert str(scan.parent) not in paths[key].read_text()


def test_in_memory(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    semantic, vertebrae, points, code = process_img_nii(scan, *models, return_output_instead_of_save=True, **QUICK)
    assert code == ErrCode.OK
    assert [p.name for p in scan.parent.iterdir()] == [scan.name]
    assert semantic.shape == vertebrae.shape == SCAN.shape and semantic.orientation == ("P", "I", "R")
    paths, _ = process_img_nii(scan, *models, **QUICK)
    np.testing.assert_array_equal(semantic.get_array(), load(paths["out_spine"]))
    assert (2, 50) in points
    np.testing.assert_allclose(points[2, 50], json.loads(paths["out_ctd"].read_text())[1]["2"]["50"])


def test_bids_file_of_a_data_set(tmp_path: Path, models: tuple[Oracle, ByHeight]) -> None:
    from TPTBox import BIDS_FILE

    scan = save(tmp_path / "rawdata" / "sub-1" / "sub-1_T2w.nii.gz")
    paths, code = process_img_nii(BIDS_FILE(scan, tmp_path, verbose=False), *models, **QUICK)
    assert code == ErrCode.OK
    assert paths["out_spine"].parent == tmp_path / "derivatives_seg" / "sub-1"


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAL", "IRP", "ALS", "PSR"])
def test_any_orientation_gives_the_same_result_in_space(axcodes: str, models: tuple[Oracle, ByHeight]) -> None:
    options = Options(preprocess=Options().preprocess.__class__(n4=False))
    expected = segment_volume(SCAN, Models(*models), options)
    found = segment_volume(SCAN.reoriented(axcodes), Models(*models), options)
    assert found.semantic.axcodes == axcodes
    for a, b in ((found.semantic, expected.semantic), (found.instance, expected.instance)):
        turned = a.reoriented("PIR").array
        assert (turned != b.array).mean() < 0.004  # the model's grid starts at another corner
    for p, q in zip(found.points, expected.points, strict=True):
        assert (p.vertebra, p.subregion) == (q.vertebra, q.subregion)
        np.testing.assert_allclose(p.world, q.world, atol=1.0)


class TestReuse:
    """Earlier results are used when, and only when, they are what this run would make."""

    def test_second_run_is_all_done(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        first, _ = process_img_nii(scan, *models, **QUICK)
        assert process_img_nii(scan, *models, **QUICK) == (first, ErrCode.ALL_DONE)
        assert models[0].calls == 1

    def test_another_image_under_the_same_name(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        process_img_nii(scan, *models, **QUICK)
        save(scan, SCAN.with_array(SCAN.array + 1))
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
        assert models[0].calls == 2

    def test_another_model(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        process_img_nii(scan, *models, **QUICK)
        models[1].fingerprint = "by-height-2"
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
        assert (models[0].calls, models[1].calls) == (1, 2)

    def test_options_redo_only_what_follows_from_them(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        process_img_nii(scan, *models, **QUICK)
        assert process_img_nii(scan, *models, vertebra_instance_labeling_offset=1, **QUICK)[1] == ErrCode.OK
        assert (models[0].calls, models[1].calls) == (1, 1)
        assert process_img_nii(scan, *models, proc_inst_corpus_clean=False, **QUICK)[1] == ErrCode.OK
        assert (models[0].calls, models[1].calls) == (1, 2)
        assert process_img_nii(scan, *models, proc_sem_crop_input=False, **QUICK)[1] == ErrCode.OK
        assert (models[0].calls, models[1].calls) == (2, 3)

    def test_overrides(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        process_img_nii(scan, *models, **QUICK)
        calls = []
        for flag in ("override_ctd", "override_postpair", "override_instance", "override_semantic"):
            assert process_img_nii(scan, *models, **{flag: True}, **QUICK)[1] == ErrCode.OK
            calls.append((models[0].calls, models[1].calls))
        assert calls == [(1, 1), (1, 1), (1, 2), (2, 3)]

    @pytest.mark.parametrize("sure", [0.6, 0.9])
    def test_doubt_about_the_image_outlives_the_run(
        self, scan: Path, models: tuple[Oracle, ByHeight], sure: float
    ) -> None:
        models[0].sure = sure
        for options in ({}, {"override_instance": True}):
            paths, _ = process_img_nii(scan, *models, **options, **QUICK)
            warnings = json.loads(paths["out_prov"].read_text())["warnings"]
            assert any("hardly a spine" in text for text in warnings) == (sure < 0.7)
        assert models[0].calls == 1

    def test_resumed_results_are_the_same_bytes(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        paths, _ = process_img_nii(scan, *models, **QUICK)
        fresh = content(paths)
        for key in FOUR:
            paths[key].unlink()
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
        assert content(paths) == fresh and models[0].calls == 1

    @pytest.mark.parametrize("key", ["out_spine", "out_ctd", "out_snap"])
    def test_a_changed_output_is_made_again(self, scan: Path, models: tuple[Oracle, ByHeight], key: str) -> None:
        paths, _ = process_img_nii(scan, *models, **QUICK)
        fresh = paths[key].read_bytes()
        paths[key].write_bytes(fresh[: len(fresh) // 2])
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
        assert paths[key].read_bytes() == fresh

    def test_a_truncated_raw_mask_is_not_trusted(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        paths, _ = process_img_nii(scan, *models, **QUICK)
        raw = paths["out_spine_raw"].read_bytes()
        paths["out_spine_raw"].write_bytes(raw[: len(raw) // 2])
        paths["out_spine"].unlink()
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
        assert models[0].calls == 2

    def test_without_raw_masks_a_finished_scan_is_finished(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        paths, _ = process_img_nii(scan, *models, save_raw=False, **QUICK)
        assert not paths["out_raw"].exists()
        assert process_img_nii(scan, *models, save_raw=False, **QUICK)[1] == ErrCode.ALL_DONE

    def test_outputs_without_a_record_are_not_trusted(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        paths, _ = process_img_nii(scan, *models, **QUICK)
        paths["out_prov"].unlink()
        assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK

    @pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
    def test_killed_between_phases_goes_on(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        code = """
import sys, time
sys.path.insert(0, sys.argv[2])
from stubs import ByHeight, Oracle, spine
from spineps import process_img_nii
class Slow(ByHeight):
    def segment(self, cutouts, batch_size=4):
        print("instance", flush=True)
        time.sleep(60)
process_img_nii(sys.argv[1], Oracle(spine(3)[1]), Slow(), proc_sem_n4_bias_correction=False)
"""
        here = str(Path(__file__).parent)
        process = subprocess.Popen([sys.executable, "-c", code, str(scan), here], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"instance\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        paths, answer = process_img_nii(scan, *models, **QUICK)
        assert answer == ErrCode.OK and models[0].calls == 0
        resumed = content(paths)
        process_img_nii(scan, *models, override_semantic=True, **QUICK)
        assert content(paths) == resumed


def test_extras_are_really_written(scan: Path, models: tuple[Oracle, ByHeight], tmp_path: Path) -> None:
    paths, _ = process_img_nii(
        scan,
        *models,
        save_modelres_mask=True,
        save_softmax_logits=True,
        save_uncertainty=True,
        save_debug_data=True,
        snapshot_copy_folder=tmp_path / "pictures",
        **QUICK,
    )
    raw = load(paths["out_spine_raw"])
    with np.load(paths["out_logits"]) as saved:
        assert saved["probabilities"].dtype == np.float16 and saved["probabilities"].shape == (15, *raw.shape)
        np.testing.assert_allclose(saved["probabilities"].astype(float).sum(axis=0), 1, atol=1e-2)
        assert saved["class_names"][9] == "corpus" and saved["class_ids"][9] == 49
    entropy = load(paths["out_uncertainty"])
    assert entropy.shape == SCAN.shape and 0 < entropy.max() <= 1 and entropy.min() >= 0
    for key in ("out_spine_modelres", "out_vert_modelres"):
        assert load(paths[key]).shape == raw.shape
    assert {p.name for p in paths["out_debug"].iterdir()} >= {"sem_raw_T2w.nii.gz", "vert_arr_return_final_T2w.nii.gz"}
    assert paths["out_snap2"] == tmp_path / "pictures" / paths["out_snap"].name
    assert paths["out_snap2"].read_bytes() == paths["out_snap"].read_bytes()


def test_a_table_of_measures_is_written_unless_refused(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    paths, _ = process_img_nii(scan, *models, save_stats=False, **QUICK)
    assert paths["out_vert"].is_file() and not list(scan.parent.rglob("*_stats.*"))
    paths, code = process_img_nii(scan, *models, save_stats=True, **QUICK)  # of masks that are there already
    assert code in (ErrCode.OK, ErrCode.ALL_DONE)
    assert {p.suffix for p in scan.parent.rglob("*_seg-vert_stats.*")} == {".tsv", ".json"}


def test_crop_is_applied_once_and_nothing_is_smeared(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    crop = (slice(10, 82), slice(30, None), slice(0, 16))
    paths, code = process_img_nii(
        scan, *models, crop=crop, proc_pad_size=4, proc_sem_crop_input=False, proc_normalize_input=False, **QUICK
    )
    assert code == ErrCode.OK
    size = np.array([72, SCAN.shape[1] - 30, 16])  # no frame: these models never saw one
    np.testing.assert_array_equal(models[0].seen, np.ceil(size * SCAN.zoom / (1.5, 1.5, 2.5) - 1e-3))
    semantic = load(paths["out_spine"])
    assert semantic.shape == SCAN.shape
    outside = np.ones(SCAN.shape, bool)
    outside[crop] = False
    assert not semantic[outside].any() and semantic[crop].any()
    with pytest.raises(OptionError):
        process_img_nii(scan, *models, crop=5)  # type: ignore[arg-type]
    assert process_img_nii(scan, *models, crop=(slice(500, 600),) * 3)[1] == ErrCode.OPTIONS


def test_what_cleaning_deletes_does_not_come_back(models: tuple[Oracle, ByHeight]) -> None:
    labels = TRUTH.array.copy()
    labels[84:87, 40:43, 1:3] = 49  # a speck far behind
    found = segment_volume(SCAN, Models(Oracle(TRUTH.with_array(labels)), models[1]))
    assert not found.semantic.array[80:].any()


def test_one_hot_changes_only_what_differs() -> None:
    probabilities = np.full((3, 1, 1, 2), 1 / 3, np.float32)
    one_hot(probabilities, np.array([[[49, 0]]]), np.array([[[100, 0]]]), (0, 49, 100))
    np.testing.assert_allclose(probabilities[:, 0, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(probabilities[:, 0, 0, 1], 1 / 3)


def test_the_semantic_mask_can_be_changed_on_the_way(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    def without_sacrum(mask):  # type: ignore[no-untyped-def]
        return mask.set_array(np.where(mask.get_array() == 26, 0, mask.get_array()))

    for _ in range(2):  # a function has no fingerprint, so its results are never used again
        paths, code = process_img_nii(scan, *models, lambda_semantic=without_sacrum, **QUICK)
        assert code == ErrCode.OK and 26 not in load(paths["out_spine"])
    paths, code = process_img_nii(scan, *models, **QUICK)
    assert code == ErrCode.OK and 26 in load(paths["out_spine"])


@pytest.mark.parametrize("has_c1", [False, True])
def test_ct_keeps_hounsfield_units(has_c1: bool) -> None:
    def options(modalities: tuple[Modality, ...], name: str) -> Options:
        semantic = Oracle(TRUTH, config(modalities=modalities, has_c1=has_c1))
        scan = scan_from(name)
        job = Job(scan, Models(semantic, ByHeight()), Options(), output_paths(scan))  # type: ignore[arg-type]
        return effective_options(job, SCAN)

    anything = (*ALL_MR, Modality.CT)
    assert options(ALL_MR, "sub-x_T2w.nii") == options(anything, "sub-x_T2w.nii") == Options()
    for modalities in ((Modality.CT,), anything):
        ct = options(modalities, "sub-x_ct.nii")
        assert not ct.preprocess.normalize and not ct.preprocess.n4
        assert ct.post.labeling_offset == (0 if has_c1 else 1)


def test_options_that_do_not_exist(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    with pytest.raises(OptionError):
        process_img_nii(scan, *models, proc_sem_step_size=3)
    with pytest.raises(TypeError):
        process_img_nii(scan, *models, nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError):
        segment(scan, nonsense=1)


class TestSegment:
    """The call for people in a hurry."""

    def how(self, models: tuple[Oracle, ByHeight]) -> dict:
        return {"model_semantic": models[0], "model_instance": models[1], "model_labeling": None, **QUICK}

    def test_path(self, scan: Path, models: tuple[Oracle, ByHeight]) -> None:
        first = segment(scan, **self.how(models))
        second = segment(str(scan), **self.how(models))
        assert (first.errcode, second.errcode) == (ErrCode.OK, ErrCode.ALL_DONE) and second.success
        assert all(first.output_paths[key].is_file() for key in FOUR)
        for result in (first, second):
            assert result.semantic.shape == result.vertebrae.shape == SCAN.shape
            assert (2, 50) in result.points and result.centroids is result.points
            assert "not named" in result.warnings[-1]

    def test_images_in_memory(self, models: tuple[Oracle, ByHeight], tmp_path: Path) -> None:
        from TPTBox import NII

        nifti = nib.Nifti1Image(SCAN.array, SCAN.affine)
        for image in (nifti, NII(nifti), SCAN):
            result = segment(image, **self.how(models))
            assert result.success and not result.output_paths
            assert 49 in result.semantic.get_array()

    def test_failure(self, tmp_path: Path, models: tuple[Oracle, ByHeight]) -> None:
        result = segment(tmp_path / "none.nii.gz", **self.how(models))
        assert result.errcode == ErrCode.NOT_FOUND and not result.success and result.error is not None
        with pytest.raises(InputNotFoundError):
            _ = result.semantic
        assert segment(tmp_path / "none.nii.gz").errcode == ErrCode.NOT_FOUND
        with pytest.raises(TypeError):
            segment(5, **self.how(models))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """The data set of the recorded scenarios L and L2."""
    for name in (
        "odd.nii.gz",
        "sub-01/sub-01_T2w.nii.gz",
        "sub-02/ses-1/sub-02_ses-1_acq-ax_T2w.nii.gz",
        "sub-02/ses-1/sub-02_ses-1_acq-sag_T2w.nii.gz",
        "sub-03/sub-03_T1w.nii.gz",
    ):
        save(tmp_path / "rawdata" / name)
    return tmp_path


class TestDataset:
    """Many scans."""

    def test_filters(self, bids: Path) -> None:
        semantic, instance = Oracle(TRUTH, config(**T2W)), ByHeight()
        answer = process_dataset(bids, instance, semantic, proc_sem_n4_bias_correction=False)
        assert answer == {"seen": 2, "processed": 2, "already_done": 0, "failed": 0, "failures": []}
        found = sorted(str(p.relative_to(bids / "derivatives_seg")) for p in bids.rglob("*seg-vert_msk.nii.gz"))
        assert found == [
            "sub-01/sub-01_mod-T2w_seg-vert_msk.nii.gz",
            "sub-02/ses-1/sub-02_ses-1_acq-sag_mod-T2w_seg-vert_msk.nii.gz",
        ]
        (log,) = (bids / "logs").iterdir()
        assert log.name.endswith("_segmentation_pipeline_log.log") and "sub-01_T2w" in log.read_text()
        answer = process_dataset(bids, instance, semantic, **SILENT)
        assert answer["already_done"] == 2

    def test_every_file(self, bids: Path) -> None:
        semantic, instance = Oracle(TRUTH, config(**T2W)), ByHeight()
        answer = process_dataset(bids, instance, semantic, ignore_bids_filter=True, snapshot_copy_folder=True, **SILENT)
        assert (answer["seen"], answer["processed"], answer["failed"]) == (5, 3, 2)
        assert {code for code, _ in answer["failures"]} == {ErrCode.COMPATIBILITY}
        assert len(list((bids / "snaps_seg").glob("*.png"))) == 3

    def test_a_bad_scan_does_not_end_the_run(self, bids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (bids / "rawdata/sub-01/sub-01_T2w.nii.gz").write_bytes(b"\x1f\x8bnonsense")
        answer = process_dataset(bids, ByHeight(), Oracle(TRUTH, config(**T2W)), **SILENT)
        assert (answer["processed"], answer["failed"]) == (1, 1)
        assert answer["failures"] == [(ErrCode.UNREADABLE, bids / "rawdata/sub-01/sub-01_T2w.nii.gz")]

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Oracle, "probabilities", broken)
        answer = process_dataset(bids, ByHeight(), Oracle(TRUTH, config(**T2W)), override_semantic=True, **SILENT)
        assert {code for code, _ in answer["failures"]} == {ErrCode.UNREADABLE, ErrCode.UNKNOWN}

    def test_models_and_pairs(self, bids: Path) -> None:
        t2w, t1w = (Oracle(TRUTH, config(modalities=(m,))) for m in (Modality.T2w, Modality.T1w))
        pairs = [(Modality.T2w, Acquisition.sag), (Modality.T1w, Acquisition.sag)]
        with pytest.raises(ValueError, match="not made for"):
            process_dataset(bids, ByHeight(), t2w, modalities=pairs, **SILENT)
        with pytest.raises(ValueError, match="3 semantic models"):
            process_dataset(bids, ByHeight(), [t2w] * 3, modalities=pairs, **SILENT)
        answer = process_dataset(bids, ByHeight(), [t2w, t1w], modalities=pairs, **SILENT)
        assert answer["processed"] == 3 and (t2w.calls, t1w.calls) == (2, 1)

    def test_folders(self, tmp_path: Path) -> None:
        semantic, instance = Oracle(TRUTH), ByHeight()
        with pytest.raises(InputNotFoundError, match="rawdata"):
            process_dataset(tmp_path, instance, semantic, **SILENT)
        save(tmp_path / "sub-7" / "anat" / "sub-7_T2w.nii")
        answer = process_dataset(tmp_path, instance, semantic, rawdata_name=".", **SILENT)
        assert answer["processed"] == 1
        assert (tmp_path / "derivatives_seg/sub-7/anat/sub-7_mod-T2w_seg-spine_msk.nii.gz").is_file()
        answer = process_dataset(tmp_path, instance, semantic, rawdata_name=".", **SILENT)
        assert (answer["seen"], answer["already_done"]) == (1, 1)

    def test_dixon_in_phase_only(self, tmp_path: Path) -> None:
        for part in ("inphase", "water"):
            save(tmp_path / "rawdata" / f"sub-1_part-{part}_dixon.nii.gz")
        save(tmp_path / "rawdata" / "sub-2_dixon.nii.gz")
        (tmp_path / "rawdata" / "sub-2_dixon.json").write_text('{"ImageType": ["DERIVED", "W"]}')
        answer = process_dataset(tmp_path, ByHeight(), Oracle(TRUTH), **SILENT)
        assert answer["seen"] == 1


def test_another_precision_is_another_result(scan: Path, models: tuple[Oracle, ByHeight]) -> None:
    assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
    assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.ALL_DONE
    models[0].precision = "bf16"
    assert process_img_nii(scan, *models, **QUICK)[1] == ErrCode.OK
