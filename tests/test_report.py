"""The report of a scan: what it says, and how it behaves in a real Chromium, opened from the disk."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scans_on_disk import masks, write_scan
from stubs import ByHeight, Oracle, spine
from test_page import CHROMIUM, DRIVER, contrast, needs_browser

from spineps import Acquisition, ErrCode, Modality, process_dataset, process_img_nii
from spineps.cli.main import main
from spineps.dataset.report import report_group
from spineps.dataset.reports import find_record, report_dataset, report_scan
from spineps.errors import InputNotFoundError, UnreadableInputError
from spineps.outputs import snapshot
from spineps.outputs.nifti import read_labels
from spineps.outputs.report import scene as scenes
from spineps.outputs.report.page import MARK, write_report
from spineps.outputs.report.scene import build_scene
from spineps.outputs.report.sources import sources_of
from spineps.outputs.stats import write_stats_of
from spineps.volume import Volume

NASTY = "<img src=x onerror=document.title=1>"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
NO_GL = ("--disable-gpu", "--disable-3d-apis", "--disable-webgl", "--disable-webgl2")
Browser = Any


def grey(semantic: Volume) -> Volume:
    """A scan of the masks with something bright at the patient's right, beside the third body."""
    array = np.random.default_rng(3).normal(60, 6, semantic.shape).astype(np.float32)
    array[semantic.array > 0] += 70
    array[4:12, 26:34, 8:] = 900.0
    return Volume(array, semantic.affine)


def finished(root: Path, name: str, axcodes: str = "PIR", **naming: Any) -> Path:
    """Results with a table, beside their scan; returns the record."""
    pair = tuple(mask.reoriented(axcodes) for mask in masks())
    paths = write_scan(root, name, (pair[0], pair[1]), **naming)
    raw = root.parent / "rawdata"
    raw.mkdir(exist_ok=True)
    image = grey(masks()[0]).reoriented(axcodes)
    nib.save(nib.Nifti1Image(image.array, image.affine), raw / f"{name}.nii.gz")
    write_stats_of(paths["out_spine"], paths["out_vert"], paths["out_stats"])
    return paths["out_prov"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ds" / "derivatives_seg"


def page_of(record: Path) -> str:
    return sources_of(record, None).out.read_text(encoding="utf-8")


# --- what it says ----------------------------------------------------------------------------------------------------


def test_written_when_something_changed(root: Path) -> None:
    record = finished(root, "sub-1_T2w", confidence={"L1": 0.9})
    assert report_dataset(root.parent).written == 1
    assert report_dataset(root.parent).written == 0
    before = page_of(record)
    assert report_dataset(root.parent, always=True).written == 1
    assert page_of(record) == before, "the same content gives the same page"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "warnings": ["Names: a best guess."]}))
    assert report_dataset(root).written == 1 and "a best guess" in page_of(record)
    files = sources_of(record, None)
    mask = read_labels(files.vertebrae)
    mask.array[mask.array == 20] = 0
    nib.save(nib.Nifti1Image(mask.array, mask.affine), files.vertebrae)
    assert report_dataset(root).written == 1 and 'data-label="20"' not in page_of(record)


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("out_stats", "There is no table of measurements."),
        ("out_ctd", "The file of points is missing."),
        ("out_snap", "There is no picture"),
        ("scan", "The scan itself was not found"),
    ],
)
def test_a_missing_file_leaves_out_its_part(root: Path, key: str, note: str) -> None:
    from spineps.outputs.paths import results_beside

    record = finished(root, "sub-1_T2w")
    (root.parent / "rawdata" / "sub-1_T2w.nii.gz" if key == "scan" else results_beside(record)[key]).unlink()
    assert report_dataset(root.parent).written == 1
    page = page_of(record)
    assert note in page and 'data-label="20"' in page
    assert ("<svg" in page) == (key != "out_stats")


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"kind\tlabel\n\xff\xfe", b"kind\nvertebra\n"])
def test_a_damaged_table_costs_only_the_table(root: Path, damage: bytes) -> None:
    record = finished(root, "sub-1_T2w")
    write = sources_of(record, None).stats
    assert write is not None
    write.write_bytes(damage)
    assert report_dataset(root).written == 1 and "Nothing was measured." in page_of(record)


def test_damaged_results_do_not_end_a_data_set(root: Path) -> None:
    for n in (1, 2, 3):
        finished(root, f"sub-{n}_T2w")
    broken = sources_of(next(root.glob("sub-2*prov.json")), None)
    broken.vertebrae.write_bytes(broken.vertebrae.read_bytes()[:200])
    unfinished = next(root.glob("sub-3*prov.json"))
    unfinished.write_text(json.dumps({**json.loads(unfinished.read_text()), "stages": {}}))
    done = report_dataset(root)
    assert (len(done.pages), len(done.failed)) == (1, 1) and "sub-2" in done.failed[0][0]
    with pytest.raises(UnreadableInputError, match="cannot be read"):
        write_report(broken)


def test_names_flags_and_remarks(root: Path) -> None:
    sure = {"T11": 0.9, "T12": 0.9, "L1": 0.3, "L2": 0.95}
    record = finished(root, "sub-1_T2w", confidence=sure, alternatives={"L1": ["T13", 0.25]}, ambiguous=True)
    report_dataset(root)
    page = page_of(record)
    row = re.search(r'<tr data-label="20" class="vertebra">.*?</tr>', page)
    assert row is not None and "30 %" in row[0] and "T13 <small>25 %" in row[0] and "unsure" in row[0]
    assert "L1–L2" in page and "ambiguous names" in page and "cut: " not in row[0]
    assert "mask of vertebrae was changed" not in page
    told = json.loads(record.read_text())
    told["stages"]["final"]["files"] = {sources_of(record, None).vertebrae.name: {"size": 1, "sha256": "other"}}
    told["input"]["sha256"] = "another image"
    record.write_text(json.dumps(told))
    report_dataset(root)
    assert "mask of vertebrae was changed" in page_of(record) and "The scan has changed since" in page_of(record)


def test_found_in_either_layout_and_by_masks(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = finished(root, "sub-1_T2w")
    scan = root.parent / "rawdata" / "sub-1_T2w.nii.gz"
    assert find_record(scan) == record
    paths = write_scan(root.parent / "derivatives/spineps", "sub-7_T2w", layout="bids")
    other = shutil.copyfile(scan, scan.with_name("sub-7_T2w.nii.gz"))
    with pytest.raises(InputNotFoundError, match="no results"):
        find_record(scan.with_name("sub-8_T2w.nii.gz"))
    assert find_record(other, str(paths["out_prov"].parents[2])) == paths["out_prov"]
    odd = shutil.copyfile(scan, tmp_path / f"a {NASTY}.nii.gz")
    pair = [sources_of(record, None).semantic, sources_of(record, None).vertebrae]
    page, written = report_scan(odd, masks=(pair[0], pair[1]), out=tmp_path / "x.html")
    text = page.read_text(encoding="utf-8")
    assert written and NASTY not in text and "&lt;img src=x" in text
    with pytest.raises(SystemExit) as end:
        main(["report", str(scan), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {
        "pages": [str(sources_of(record, None).out)],
        "written": 1,
        "failed": {},
    }


def test_group_page_links_to_reports(root: Path) -> None:
    finished(root, "sub-1_T2w")
    finished(root, "sub-2_T2w")
    report_group(root)
    report_scan(root.parent / "rawdata" / "sub-1_T2w.nii.gz")
    text = report_group(root).page.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found is not None
    reports = [card["report"] for card in json.loads(found[1])["scans"]]
    assert reports == ["sub-1_mod-T2w_seg-spine_report.html", ""]


# --- what the viewer is given ----------------------------------------------------------------------------------------


def unpacked(content: bytes) -> Volume:
    image = nib.Nifti1Image.from_bytes(__import__("gzip").decompress(content))
    return Volume(np.asarray(image.dataobj), image.affine)


def test_scene_is_cropped_and_true_to_the_world() -> None:
    semantic, instance = (mask.reoriented("LSA") for mask in masks())
    image = grey(masks()[0]).reoriented("LSA")
    scene = build_scene(image, semantic, instance)
    parts = {key: unpacked(content) for key, content in scene.volumes.items()}
    assert all(v.array.dtype == np.uint8 and v.axcodes == "RAS" for v in parts.values())
    back = parts["vertebrae"].on(instance.grid)
    np.testing.assert_array_equal(back.array, instance.array)
    offset, step = scene.scale
    grid = parts["image"].grid
    np.testing.assert_allclose(offset + step * parts["image"].array, image.on(grid).array, atol=step)
    for label in (20, 120):
        middle = np.argwhere(instance.array == label).mean(axis=0)
        at = np.array(scene.anchors[label]["at"]) * grid.shape - 0.5
        np.testing.assert_allclose(grid.to_world(at), instance.grid.to_world(middle), atol=0.1)
    solid = parts["vertebrae3d"]
    assert set(np.unique(solid.array)) >= {20, 21, 26} and max(solid.zoom) / min(solid.zoom) < 1.01
    volume = (solid.array == 20).sum() * solid.grid.voxel_volume
    assert volume == pytest.approx((instance.array == 20).sum() * instance.grid.voxel_volume, rel=0.1)


def test_scene_is_coarsened_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    semantic, instance = masks()
    monkeypatch.setattr(scenes, "BUDGET", 6000)
    scene = build_scene(grey(semantic), semantic, instance)
    assert len(scene.volumes["image"]) <= 6000 and scene.coarse
    assert scene.grid.zoom[0] == pytest.approx(3.0), "the coarsest axis keeps its voxels longest"
    assert set(np.unique(unpacked(scene.volumes["vertebrae"]).array)) >= {20, 21, 22, 26}


def test_the_neck_in_3d_keeps_clear_of_the_viewers_background() -> None:
    semantic, instance = masks((1, 2, 3, 4))
    solid = unpacked(build_scene(None, semantic, instance).volumes["vertebrae3d"]).array
    assert not set(np.unique(solid)) & {1, 2}, "NiiVue would take them for what lies between the bodies"
    assert {3, scenes.C1_IN_3D, scenes.C2_IN_3D} <= set(np.unique(solid))


@pytest.mark.parametrize("empty", [True, False])
def test_scene_without_image_or_vertebra(empty: bool) -> None:
    semantic, instance = masks(()) if empty else masks()
    scene = build_scene(None, semantic, instance)
    assert unpacked(scene.volumes["image"]).array.max() == 0 and bool(scene.anchors) != empty


# --- every run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "HEIGHT", 1.5)


def test_every_run_can_write_it(tmp_path: Path, small_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth = spine(3)
    raw = tmp_path / "raw"
    for n in (1, 2):
        path = raw / f"sub-0{n}" / "anat" / f"sub-0{n}_T2w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(image.array, image.affine), path)
    quick = {"proc_sem_n4_bias_correction": False}
    how: dict[str, Any] = {"derivative_name": str(tmp_path / "out"), "layout": "bids", **quick}
    paths, code = process_img_nii(path, Oracle(truth), ByHeight(), save_report=True, **quick)
    assert code == ErrCode.OK and paths["out_report"].is_file()
    paths["out_report"].unlink()
    paths, code = process_img_nii(path, Oracle(truth), ByHeight(), save_report=True, **quick)
    assert code == ErrCode.ALL_DONE and paths["out_report"].is_file(), "made of the results that are there"
    shutil.rmtree(path.parent / "derivatives_seg")
    pairs = [(Modality.T2w, Acquisition.sag)]
    models = (ByHeight(), Oracle(truth))
    where = {"rawdata_name": ".", "save_log_data": False, "modalities": pairs, **how}
    assert process_dataset(raw, *models, **where)["processed"] == 2
    answer = process_dataset(raw, *models, **where, save_report=True)
    pages = sorted((tmp_path / "out").rglob("*_report.html"))
    assert answer["already_done"] == 2 and [p.name for p in pages] == [f"sub-0{n}_desc-T2w_report.html" for n in (1, 2)]
    assert report_dataset(tmp_path / "out").written == 0, "the scan is found through the data set's links"
    validator = shutil.which("bids-validator-deno")
    if validator:
        done = subprocess.run([validator, "--format", "json", str(tmp_path / "out")], capture_output=True, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []
    monkeypatch.setattr("spineps.outputs.report.page.build_scene", lambda *_: 1 / 0)
    paths, code = process_img_nii(path, Oracle(truth), ByHeight(), save_report=True, **quick)
    assert code == ErrCode.OK and not paths["out_report"].exists(), "a page that fails costs no mask"


# --- in a browser ----------------------------------------------------------------------------------------------------


def started(folder: Path, *flags: str) -> Browser:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *flags, "--window-size=1000,760", f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    return driver


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def ready(driver: Browser, key: str = "ready") -> str:
    return wait_for(lambda: driver.execute_script(f"return document.documentElement.dataset.{key}"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same person, stored along two ways; the first with a name and a warning that are meant badly."""
    root = tmp_path_factory.mktemp("report") / "ds" / "derivatives_seg"
    found = {}
    for axcodes in ("PIR", "LSA"):
        record = finished(root, f"sub-{axcodes}_T2w", axcodes, confidence={"L1": 0.3, "L2": 0.9})
        told = json.loads(record.read_text())
        told.update(warnings=[f"{NASTY}</script><!--niivue-->"])
        told["input"]["name"] = f"{NASTY}.nii.gz"
        record.write_text(json.dumps(told))
        found[axcodes] = sources_of(record, None).out
    assert report_dataset(root.parent).written == 2
    return found


@pytest.fixture(scope="module")
def opened(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = started(tmp_path_factory.mktemp("profile"), *SOFTWARE_GL)
    driver.get(pages["PIR"].as_uri())
    assert ready(driver) == "viewer"
    yield driver
    driver.quit()


@pytest.fixture
def page(opened: Browser) -> Iterator[Browser]:
    """As freshly opened; no error may have come up in the end."""
    yield opened
    assert opened.get_log("browser") == []
    for key in ("vertebrae", "outline", "names"):
        if opened.execute_script(f"return !report.state.{key}"):
            press(opened, key[0])
    if opened.execute_script("return report.state.structures"):
        press(opened, "s")
    press(opened, "1")


def press(page: Browser, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def crosshair(page: Browser) -> np.ndarray:
    """RAS mm, by NiiVue's own state."""
    script = "const f = report.flat; return [...f.frac2mm(f.scene.crosshairPos, 0, true)].slice(0, 3)"
    return np.array(page.execute_script(script))


def current(page: Browser) -> str:
    rows = page.find_elements("css selector", "#levels tr[aria-current]")
    return rows[0].find_element("css selector", ".jump").text if rows else ""


def centre(label: int) -> np.ndarray:
    instance = masks()[1]
    return instance.grid.to_world(np.argwhere(instance.array == label).mean(axis=0))


def pixels(page: Browser, viewer: str = "flat") -> np.ndarray:
    """(rows, columns, 3) of a canvas."""
    canvas = {"flat": "slices", "solid": "bodies"}[viewer]
    script = f"report.{viewer}.drawScene(); return document.getElementById('{canvas}').toDataURL('image/png')"
    content = page.execute_script(script).split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def place(page: Browser, world: np.ndarray, slice_type: int) -> tuple[int, int]:
    """Where a point of the crosshair's slice is on the canvas, in its pixels."""
    script = """const f = report.flat; const at = f.mm2frac(arguments[0], 0, true);
        const axis = {0: 2, 1: 1, 2: 0}[arguments[1]]; at[axis] = f.scene.crosshairPos[axis];
        return f.frac2canvasPosWithTile(at, arguments[1])?.pos"""
    x, y = page.execute_script(script, [float(v) for v in world], slice_type)
    return round(x), round(y)


@needs_browser
def test_opened_from_the_disk(page: Browser) -> None:
    assert page.find_element("css selector", "h1").text == f"{NASTY}.nii.gz"
    assert page.find_elements("css selector", "img[src=x]") == [] and page.title != "1"
    assert NASTY in page.find_element("id", "notes").text
    rows = page.find_elements("css selector", "#levels tbody tr")
    assert len(rows) == 15 and page.find_elements("css selector", ".plots svg")
    assert "unsure" in page.find_element("css selector", '#levels tr[data-label="20"]').text
    tags = [tag.text for tag in page.find_elements("css selector", "#tags span")]
    assert {"T12", "L1?", "L3", "S1"} <= set(tags)
    asked = "return performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !/^(data|blob):/.test(n))"
    assert page.execute_script(asked) == []


@needs_browser
def test_no_request_can_leave_the_page(page: Browser) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """const done = arguments[1], image = new Image(); image.onload = image.onerror = () => {
        const code = document.createElement('script'); code.textContent = 'window.ran = 1'; document.head.append(code);
        fetch(arguments[0] + '/fetch').catch((e) => e).then(() => done(window.ran ?? 0)); };
        image.src = arguments[0] + '/image'"""
    try:
        assert page.execute_async_script(script, f"http://127.0.0.1:{server.server_port}") == 0, "a foreign script ran"
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()
    refused = [entry["message"] for entry in page.get_log("browser")]
    assert len(refused) >= 3 and all("Content Security Policy" in text or "127.0.0.1" in text for text in refused)


@needs_browser
def test_rows_plots_and_keys_move_the_crosshair(page: Browser) -> None:
    for label, name in ((21, "L2"), (122, "L3–L4"), (18, "T11")):
        page.find_element("css selector", f'#levels tr[data-label="{label}"] .jump').click()
        assert np.abs(crosshair(page) - centre(label)).max() < 2, name
        assert current(page) == name
    point = page.find_element("css selector", '.plots g[data-label="23"]')
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", point)
    assert current(page) == "L4" and np.abs(crosshair(page) - centre(23)).max() < 2
    press(page, "\ue013")  # up
    assert current(page) == "L3"
    press(page, "\ue015\ue015")  # down, down
    assert current(page) == "L5"
    before = crosshair(page)
    press(page, "\ue012")  # left: towards the patient's right
    assert 1 < crosshair(page)[0] - before[0] < 5, "one slice of 3 mm, to its middle"
    assert "L5 · vertebral body" in page.find_element("id", "point").text


@needs_browser
def test_a_click_into_the_image_marks_the_row(page: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    press(page, "2")
    page.find_element("css selector", '#levels tr[data-label="19"] .jump').click()
    x, y = place(page, centre(22), 2)
    canvas = page.find_element("id", "slices")
    size, ratio = canvas.size, page.execute_script("return report.flat.uiData.dpr")
    dx, dy = x / ratio - size["width"] / 2, y / ratio - size["height"] / 2
    ActionChains(page).move_to_element_with_offset(canvas, round(dx), round(dy)).click().perform()
    assert current(page) == "L3" and abs(crosshair(page)[2] - centre(22)[2]) < 4


@needs_browser
def test_masks_are_seen_and_taken_away(page: Browser) -> None:
    page.find_element("css selector", '#levels tr[data-label="22"] .jump').click()
    color = np.array([int(snapshot.instance_color(21)[k : k + 2], 16) for k in (1, 3, 5)])
    x, y = place(page, centre(21), 2)

    def tint() -> float:
        """How much of the second lumbar vertebra's colour there is in its middle."""
        here = pixels(page)[y - 3 : y + 4, x + 3 : x + 8].mean(axis=(0, 1))
        return float(np.dot(here - here.mean(), color - color.mean()) / np.linalg.norm(color - color.mean()))

    with_mask = tint()
    assert with_mask > 15
    press(page, "v")
    assert abs(tint()) < 3
    press(page, "s")
    assert tint() != pytest.approx(with_mask, abs=3)
    assert page.find_element("id", "legend").is_displayed()
    press(page, "sv")
    assert tint() == pytest.approx(with_mask, abs=2)
    press(page, "]]]")
    assert tint() > with_mask + 10
    press(page, "[[[")
    page.find_element("css selector", "[data-act=names]").click()
    assert page.find_elements("css selector", "#tags span") == []


def sides(driver: Browser) -> tuple[float, float]:
    """Brightness at the left and right of the coronal and axial slices through the bright thing."""
    driver.find_element("css selector", '#levels tr[data-label="20"] .jump').click()
    press(driver, "v")
    found = []
    for key, slice_type in (("3", 1), ("4", 0)):
        press(driver, key)
        seen = pixels(driver).mean(axis=2)
        middle = place(driver, centre(20), slice_type)[0]
        found.append((seen[:, :middle].mean(), seen[:, middle:].mean()))
    left, right = np.mean(found, axis=0)
    press(driver, "v1")
    return float(left), float(right)


@needs_browser
def test_the_patients_right_is_at_the_left(page: Browser, pages: dict[str, Path]) -> None:
    left, right = sides(page)
    assert left > 1.3 * right
    page.get(pages["LSA"].as_uri())
    assert ready(page) == "viewer"
    other = sides(page)
    page.get(pages["PIR"].as_uri())
    assert ready(page) == "viewer"
    np.testing.assert_allclose(other, (left, right), rtol=0.1)


@needs_browser
def test_bodies_in_3d(page: Browser) -> None:
    press(page, "5")
    assert ready(page, "solid") == "ready"
    seen = pixels(page, "solid")
    colored = (seen.max(axis=2) - seen.min(axis=2)) > 60
    assert 0.01 < colored.mean() < 0.6
    assert len({tuple(c // 64) for c in seen[colored]}) > 5, "several vertebrae in their colours"


@needs_browser
def test_light_dark_narrow_help_and_print(page: Browser) -> None:
    look = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    first = page.execute_script(look)
    page.find_element("id", "theme").click()
    second = page.execute_script(look)
    assert first != second and contrast(*first) > 10 and contrast(*second) > 10
    press(page, "t")
    assert page.execute_script(look) == first
    press(page, "?")
    assert page.execute_script("return document.getElementById('keys').open")
    press(page, "\ue00c")
    page.set_window_size(500, 900)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.set_window_size(1000, 760)
    paper = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert (
        paper.startswith(b"%PDF")
        and page.execute_script("return document.getElementById('printed').naturalWidth") > 300
    )
    data = page.execute_script("return document.getElementById('printed').src").split(",")[1]
    printed = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
    assert printed.std() > 10, "the canvas was taken before it was emptied"


@needs_browser
def test_without_webgl_there_is_the_picture(pages: dict[str, Path], tmp_path: Path) -> None:
    driver = started(tmp_path, *NO_GL)
    try:
        driver.get(pages["PIR"].as_uri())
        assert ready(driver) == "picture"
        assert driver.find_element("css selector", "#viewer #snapshot").is_displayed()
        assert "WebGL" in driver.find_element("id", "fallback").text
        assert not driver.find_element("id", "stage").is_displayed()
        driver.find_element("css selector", '#levels tr[data-label="21"] .jump').click()
        assert current(driver) == "L2"
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def test_nothing_is_fetched_from_elsewhere(pages: dict[str, Path]) -> None:
    text = pages["PIR"].read_text(encoding="utf-8")
    assert len(text) < 2.5e6 and MARK.search(text[:2000])
    assert "default-src 'none'" in text and "unsafe-eval" not in text
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[a-z]*:?//""", text)
