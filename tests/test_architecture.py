"""The house of docs/architecture.md, held by the import statements themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spineps

ROOT = Path(spineps.__file__).parent
#: From the ground up: a room may import rooms of its own or a lower number.
ORDER = [
    "errors", "anatomy", "volume", "options", "models", "inference", "phases", "pipeline", "outputs", "dataset",
    "seg_run", "synth", "training", "evaluation", "cli",
]  # fmt: skip
#: models/ names what a model is and inference/ runs it: they may know each other.
FLOOR = {room: i for i, room in enumerate(ORDER)} | {"inference": ORDER.index("models")}
HEAVY = ("torch", "openvino", "matplotlib", "scipy", "SimpleITK", "TPTBox", "skimage", "sklearn", "cc3d")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def spineps_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spineps."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("spineps.")}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_stands_above_them(path: Path) -> None:
    room = room_of(path)
    if room == "__main__":
        return
    assert room in FLOOR, f"{room} is not in the house"
    above = [other for other in spineps_imports(path) if FLOOR[other] > FLOOR[room]]
    assert not above, f"{path.name} ({room}) imports {above}"


@pytest.mark.parametrize("statement", ["import spineps", "import spineps.cli.main"])
def test_importing_brings_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
