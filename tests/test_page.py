"""The page of a data set, in a real Chromium, opened from the disk as a user would."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from scans_on_disk import LUMBAR, masks, write_scan

from spineps.outputs.group.page import write_page
from spineps.outputs.group.table import write_group
from spineps.outputs.writer import Writer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and find_spec("selenium")),
    reason="needs chromium, chromedriver (apt-get install chromium chromium-driver) and selenium (in the dev extra)",
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--window-size=1300,900", "--enable-precise-memory-info"),
)
FAILURES = [("rawdata/sub-9_T2w.nii.gz", "sub-9_T2w.nii.gz is truncated. </script><b>Copy</b> it again.")]
Browser = Any


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans, one of them failed, in the order 1, 2, 3, 5, 9, 10."""
    root = tmp_path_factory.mktemp("page") / "ds" / "derivatives_seg"
    write_scan(root, "sub-1_T2w", confidence={"L1": 0.9})
    write_scan(root, "sub-2_T2w", masks(heights={21: 5}), confidence={"L1": 0.8})
    write_scan(root, "sub-3_T2w", masks(LUMBAR[2:]), ambiguous=True, confidence={"L1": 0.3})
    write_scan(root, "sub-5_T2w", masks(()))
    write_scan(root, "sub-10_T2w", confidence={"L1": 0.7})
    return write_group(root, FAILURES, "ds").page


@pytest.fixture
def page(browser: Browser, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Freshly opened, nothing rated; no error may have come up in the end."""
    browser.get(page_file.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    browser.get_log("browser")
    yield browser
    assert browser.get_log("browser") == []


def shown(page: Browser) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('.card h2')].map((e) => e.textContent.slice(4, -4))"
    )


def choose(page: Browser, select: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("id", select)).select_by_value(value)


def press(page: Browser, keys: str) -> None:
    for key in keys:
        page.switch_to.active_element.send_keys(key)


def ratings(page: Browser) -> dict[str, str]:
    script = """return Object.fromEntries([...document.querySelectorAll('.card')].map((card) => [
        card.querySelector('h2').textContent.slice(4, -4),
        card.querySelector('[aria-pressed=true]')?.dataset.rating ?? '']).filter((pair) => pair[1]))"""
    return page.execute_script(script)


def wait_for(what: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@needs_browser
def test_what_is_shown(page: Browser) -> None:
    assert shown(page) == ["1", "2", "3", "5", "9", "10"]
    failed = page.find_elements("css selector", ".card")[4]
    assert FAILURES[0][1] in failed.text and "failed" in failed.text and "no picture" in failed.text
    assert "7 vertebrae, T11–S1" in page.find_element("css selector", ".card").text
    loaded = "return [...document.querySelectorAll('.card img')].map((i) => i.complete && i.naturalWidth > 0)"
    assert wait_for(lambda: all(page.execute_script(loaded))), "thumbnails beside the page are loaded"


@needs_browser
@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("name", ["1", "2", "3", "5", "9", "10"]),
        ("flags", ["5", "9", "3", "2", "1", "10"]),
        ("confidence", ["3", "10", "2", "1", "5", "9"]),
        ("count", ["5", "9", "3", "1", "2", "10"]),
    ],
)
def test_sort(page: Browser, key: str, order: list[str]) -> None:
    choose(page, "sort", key)
    assert shown(page) == order
    page.find_element("id", "direction").click()
    assert shown(page) != order
    if key == "name":
        assert shown(page) == order[::-1]


@needs_browser
def test_filter(page: Browser) -> None:
    page.find_element("id", "text").send_keys("truncated")
    assert shown(page) == ["9"] and "1 of 6" in page.find_element("id", "shown").text
    page.find_element("id", "text").clear()
    page.find_element("id", "text").send_keys("SUB-1")
    assert shown(page) == ["1", "10"]
    page.find_element("id", "text").clear()
    page.execute_script("document.getElementById('text').dispatchEvent(new Event('input'))")
    choose(page, "status", "done")
    assert shown(page) == ["1", "2", "3", "5", "10"]
    buttons = {b.text: b for b in page.find_elements("css selector", "#flags button")}
    assert list(buttons) == ["failed 1", "no vertebra 1", "odd volume 1", "unsure names 1", "ambiguous names 1"]
    buttons["ambiguous names 1"].click()
    assert shown(page) == ["3"]
    buttons["ambiguous names 1"].click()
    press(page, "jg")
    choose(page, "rating", "none")
    assert shown(page) == ["2", "3", "5", "10"]
    choose(page, "rating", "good")
    assert shown(page) == ["1"]


@needs_browser
def test_rate_by_keyboard_and_find_it_again(page: Browser) -> None:
    press(page, "j1")  # first scan: good, and on to the second
    press(page, "3k0")  # bad, back to it, and taken back
    press(page, "jjb")
    assert ratings(page) == {"1": "good", "5": "bad"}
    press(page, "kn")
    press(page, "2 discs lost")  # digits are text here
    press(page, "\ue007")  # Enter
    press(page, "ju")
    wanted = {"1": "good", "5": "bad", "9": "unsure"}
    assert ratings(page) == wanted
    assert page.find_element("id", "rated").text == "3 of 6 rated"
    page.refresh()
    assert ratings(page) == wanted
    notes = page.execute_script("return [...document.querySelectorAll('.note')].map((e) => e.value).filter(Boolean)")
    assert notes == ["2 discs lost"]
    choose(page, "sort", "rating")
    assert shown(page)[0] == "5"  # bad first


@needs_browser
def test_mouse_help_and_picture(page: Browser) -> None:
    second = page.find_elements("css selector", ".card")[1]
    good, unsure, _ = second.find_elements("css selector", "[data-rating]")
    good.click()
    unsure.click()
    assert ratings(page) == {"2": "unsure"}
    unsure.click()
    assert ratings(page) == {}
    press(page, "?")
    assert page.execute_script("return document.getElementById('keys').open")
    assert len(page.find_elements("css selector", "#rules tr")) > 8
    press(page, "\ue00c")  # Escape
    second.find_element("css selector", ".picture").click()
    assert page.execute_script("return document.getElementById('viewer').open")
    large = "return document.getElementById('large').src"
    assert wait_for(lambda: page.execute_script("return document.getElementById('large').naturalWidth")) == 64
    first = page.execute_script(large)
    press(page, "1j")  # rated in the viewer, which moves on
    assert page.execute_script(large) != first and ratings(page) == {"2": "good"}
    press(page, "\ue00c")
    assert not page.execute_script("return document.getElementById('viewer').open")


@needs_browser
def test_export_and_import(page: Browser, tmp_path: Path) -> None:
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    press(page, "jg")
    press(page, "n")
    press(page, "a note")
    press(page, "\ue007")
    page.find_element("id", "export").click()
    file = tmp_path / "ratings_ds.tsv"
    assert wait_for(lambda: file.is_file() and file.stat().st_size), "a file without content stands there first"
    head, *lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    assert head == ["scan", "participant_id", "session_id", "rating", "note", "rated_at", "status", "flags"]
    assert [line[:5] + line[6:] for line in lines] == [
        ["rawdata/sub-1_T2w.nii.gz", "sub-1", "n/a", "good", "n/a", "done", "n/a"],
        ["rawdata/sub-2_T2w.nii.gz", "sub-2", "n/a", "n/a", "a note", "done", "volume"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line[5]) for line in lines)
    page.execute_script("localStorage.clear()")
    page.refresh()
    assert ratings(page) == {}
    late = file.read_text().replace("\tgood\t", "\tbad\t") + "rawdata/sub-3_T2w.nii.gz\tx\tx\twonderful\t\t\n"
    (tmp_path / "back.tsv").write_text("\ufeff" + late.replace("\n", "\r\n"), encoding="utf-8")
    page.find_element("id", "file").send_keys(str(tmp_path / "back.tsv"))
    assert wait_for(lambda: ratings(page)) == {"1": "bad"}
    assert page.find_element("id", "notice").text == "2 ratings imported, 1 lines not understood."
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    page.find_element("id", "file").send_keys(str(tmp_path / "other.tsv"))
    assert wait_for(lambda: "no table of ratings" in page.find_element("id", "notice").text)


@needs_browser
def test_without_storage_it_says_so(page: Browser) -> None:
    forbid = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError') } })"
    )
    added = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    try:
        page.refresh()
        assert "export them" in page.find_element("id", "notice").text
        press(page, "jg")
        assert ratings(page) == {"1": "good"}
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_narrow_and_print(page: Browser, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    paper, ink, text = page.execute_script(
        "const s = getComputedStyle(document.body), q = getComputedStyle(document.querySelector('.facts'));"
        "return [s.backgroundColor, s.color, q.color]"
    )
    assert contrast(paper, ink) > 10 and contrast(paper, text) > 4.5
    page.set_window_size(420, 900)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.set_window_size(1300, 900)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert not page.find_element("css selector", ".tools").is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two ``rgb(...)`` colours."""

    def light(color: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, bright = sorted((light(first), light(second)))
    return (bright + 0.05) / (dark + 0.05)


@needs_browser
def test_two_thousand_scans(browser: Browser, page_file: Path, tmp_path: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found is not None
    cards = json.loads(found[1])["scans"]
    many = [{**cards[n % 6], "scan": f"rawdata/sub-{n:04d}_T2w.nii.gz", "odd": []} for n in range(2000)]
    shutil.copytree(page_file.parent / "thumbs", tmp_path / "thumbs")
    with Writer() as writer:
        write_page(writer, tmp_path / "index.html", "many", many)
    browser.get((tmp_path / "index.html").as_uri())
    usable = browser.execute_script("return performance.getEntriesByType('navigation')[0].domInteractive")
    assert usable < 10_000  # 0.3 s on two busy cores; a lame machine may take its time
    assert len(shown(browser)) < 500, "cards are made as one scrolls"
    press(browser, "\ue010")  # End
    assert len(shown(browser)) == 2000 and shown(browser)[-1] == "1999"
    press(browser, "g")
    browser.find_element("id", "text").send_keys("1999")
    assert ratings(browser) == {"1999": "good"}
    assert browser.execute_script("return performance.memory.usedJSHeapSize") < 100e6
    assert browser.get_log("browser") == []


def test_the_page_needs_nothing_from_elsewhere(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|type=\"module\"|\bimport\(|@import|url\(", text)
    assert text.count("</script>") == 2  # the one in a message did not end ours
    assert "<!--" not in text.replace("<!doctype", "")
