"""What the documentation says of commands, Python names, files and errors is true."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from spineps.cli.bids import spread
from spineps.cli.main import app
from spineps.cli.spelling import modern

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES if page.is_file()}
#: A word of a command line that stands for something else, or that a shell would take.
END = re.compile(r"\s(#|>|\||&&)\s.*|…|\.\.\.|\[options[^]]*\]")


def command_lines() -> Iterator[tuple[str, str]]:
    for name, text in TEXTS.items():
        fenced = "\n".join(re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.S | re.M)).replace("\\\n", " ")
        for line in fenced.splitlines() + re.findall(r"`([^`\n]+)`", text):
            if line.startswith("spineps "):
                yield name, line


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hooks of the site; they need no MkDocs."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "hooks" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_command_lines_exist(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"[][{}]", "", END.sub("", f"{line} ")).replace(",", " ").replace("|", " "))[1:]
    command: Any = typer.main.get_command(app)
    for word in (words := spread(modern(words))):
        inner = getattr(command, "commands", {})
        if word.startswith("-") or not inner:
            break
        assert word in inner or word.isupper(), f"{page}: there is no command {word!r}"
        command = inner.get(word, command)
    if words[:1] == ["train"] and "--help" not in words:
        from spineps.training.__main__ import _parser

        _parser().parse_args(words[1:])
    if command.context_settings.get("ignore_unknown_options"):
        return
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert flags <= known | {"-h", "--help"}, f"{page}: {sorted(flags - known)} in {line!r}"


def test_python_in_the_docs_compiles_and_imports() -> None:
    found = 0
    for name, text in TEXTS.items():
        for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
            tree = ast.parse(snippet, name)
            for node in ast.walk(tree):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    exec(compile(ast.Module([node], []), name, "exec"), {})
                    found += 1
    assert found >= 5


def test_every_command_and_option_is_listed(pages: ModuleType) -> None:
    text = pages.commands()
    for name, command in pages.walk():
        assert f"## {name}\n" in text
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        for option in command.params:
            assert all(flag in section for flag in option.opts if flag.startswith("-")), (name, option.name)
    assert "--model-semantic" in text and "## spineps models install" in text


def test_every_error_is_listed(pages: ModuleType) -> None:
    text = pages.messages()
    assert all(f"## {kind.code.name}: exit status {kind.code.exit_code}" in text for kind in pages.kinds())
    # Words in the call, in variables of its function, of a class of its own, and handed to a helper that words it.
    assert "| ‹path› is a folder, not a scan. | Use `spineps dataset -i FOLDER` for many scans. |" in text
    assert "Free some space or change the permissions; --derivative-name writes elsewhere." in text
    assert "| There is no ‹phase› model ‹name›. |" in text
    assert "| ‹name› is a segmentation (its name has a seg- key), not a scan. |" in text


def test_messages_are_read_as_python_reads_them(pages: ModuleType) -> None:
    source = """
CURE = "Do it again."
def f(path):
    text = f"{path.name} is " + ("gone" if path else "empty")
    raise SomeError(text, CURE)
"""
    assert list(pages.raised(ast.parse(source))) == [("SomeError", "‹path› is gone / empty", "Do it again.")]


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_generated_parts_can_be_made(page: str, pages: ModuleType) -> None:
    assert not re.search("^<!-- generated", pages.on_page_markdown(TEXTS[page]), re.M)


def test_loading_from_the_network_is_noticed(pages: ModuleType) -> None:
    loads = [
        '<script src="https://a.b/c.js">',
        "<link href=//a.b/c.css rel=stylesheet>",
        '<img alt="" src="http://a.b/c.png">',
        "@import url(https://a.b/c.css)",
        "src:url('https://a.b/c.woff2')",
    ]
    assert all(pages.FETCHES.search(text) for text in loads)
    for harmless in ('<a href="https://a.b/">', '<link rel="canonical" href="https://a.b/">', '<img src="a.png">'):
        assert not pages.FETCHES.search(harmless)
