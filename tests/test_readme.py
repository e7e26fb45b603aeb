"""The python snippets of the README run as they stand."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from spineps.cli.report import summary
from spineps.models.registry import available_models

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S) if README.is_file() else []
USED = {"t2w", "instance", "t2w_labeling"}


@pytest.fixture
def scan_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scan that the README speaks of: the real T2w crop in TPTBox's wheel."""
    spec = find_spec("TPTBox")
    assert spec is not None and spec.origin is not None
    sample = Path(spec.origin).parent / "tests" / "sample_mri" / "sub-mri_label-6_T2w.nii.gz"
    if not sample.is_file():
        pytest.skip("this TPTBox carries no sample scan")
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copyfile(sample, tmp_path / "sub-test_T2w.nii.gz"))


@pytest.mark.skipif(
    not {m.name for m in available_models() if m.runnable} >= USED, reason="the bundled models are not all there"
)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.strip().splitlines()[0])
def test_snippet(snippet: str, scan_here: Path) -> None:
    names: dict = {}
    exec(compile(snippet, str(README), "exec"), names)
    results = scan_here.parent / "derivatives_seg"
    assert {p.name.removeprefix("sub-test_mod-T2w_") for p in results.iterdir() if p.is_file()} >= {
        "seg-spine_msk.nii.gz",
        "seg-vert_msk.nii.gz",
        "seg-spine_ctd.json",
        "seg-spine_snp.png",
    }
    if "code" in names:
        assert names["code"] == "OK"
    else:
        assert not undocumented(results, names["result"])


def undocumented(results: Path, result: Any) -> list[str]:
    """Fields of the JSON files, and of what ``--json`` prints, that docs/outputs.md does not name."""
    record = json.loads(next(results.glob("*_prov.json")).read_text())
    header, _ = json.loads(next(results.glob("*_ctd.json")).read_text())
    sidecar = json.loads(next(results.glob("*_stats.json")).read_text())
    fields = {*record, *record["stages"], *record["naming"], *header, *summary(result, "")}
    fields |= {field for column in sidecar.values() for field in column}
    page = (README.parent / "docs" / "outputs.md").read_text(encoding="utf-8")
    return sorted(field for field in fields if f"`{field}`" not in page and not field.startswith("proc_"))


def test_readme_has_snippets() -> None:
    assert len(SNIPPETS) >= 2 or not README.is_file()
