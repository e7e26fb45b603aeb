"""What the site says of the code is read from the code while it is built, so that the two cannot drift apart.

A page holds ``<!-- generated: NAME ARGUMENT -->`` where a table belongs; :data:`PARTS` says who makes it.  MkDocs calls
the three ``on_...`` functions (``hooks`` in ``mkdocs.yml``); nothing else here knows MkDocs.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "spineps"
MARKER = re.compile(r"^<!-- generated: (\S+) ?(\S*) -->$", re.M)
#: Whatever a browser would fetch by itself from another machine; links that a reader may click are none of it.
FETCHES = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|use)\b[^>]*?\b(?:src|srcset|data|href)=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon|prefetch))[^>]*?\bhref=["']?(?:https?:)?//"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//|\burl\(["']?(?:https?:)?//""",
    re.I,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts where a page wants them."""
    return MARKER.sub(lambda found: PARTS[found[1]](*filter(None, [found[2]])), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings, which mkdocstrings does not know."""
    return re.sub(r":\w+:<code>(?:~[\w.]*\.)?", "<code>", html)


def on_post_build(config: Any) -> None:
    """The site must open without a network."""
    fetching = [
        f"{path.relative_to(config.site_dir)}: {found[0]}"
        for path in sorted(Path(config.site_dir).rglob("*"))
        if path.suffix in (".html", ".css")
        for found in FETCHES.finditer(path.read_text(encoding="utf-8"))
    ]
    if fetching:
        raise SystemExit("The site would load from the network:\n" + "\n".join(fetching))


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [[1, "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines)
    text = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return text.replace("| " + " | ".join(["---"] * len(head)) + " |", "|" + "---|" * len(head))


def code(text: Any) -> str:
    """
    >>> code("--x"), code(""), code("a|b")
    ('`--x`', '', '<code>a&#124;b</code>')
    """
    if "|" in str(text):  # no escape of it is read inside of backticks
        return f"<code>{escape(str(text)).replace('|', '&#124;')}</code>"
    return f"`{text}`" if str(text) else ""


# Labels


def structures() -> str:
    """The classes of the structure mask."""
    from spineps.anatomy import STRUCTURES
    from spineps.outputs.bids import EXTRA_NAMES

    rows = [
        (s.id, s.name, code(s.key), f'<span class="swatch" style="background:{s.color}"></span> `{s.color}`')
        for s in sorted(STRUCTURES, key=lambda s: s.id)
    ]
    extra = [(i, name, "", "") for i, name in sorted(EXTRA_NAMES.items())]
    return table(["id", "structure", "key", "colour"], rows) + (
        "\n\nSome published models also give these:\n\n" + table(["id", "structure"], (row[:2] for row in extra))
    )


def instances() -> str:
    """The values of the vertebra mask, a row per vertebra."""
    from spineps.anatomy import DISC_OFFSET, ENDPLATE_OFFSET, SACRUM, VERTEBRA_NAMES, VERTEBRAE, region

    rows = [
        (VERTEBRA_NAMES[v], region(v), v, "" if v in (1, SACRUM) else DISC_OFFSET + v, ENDPLATE_OFFSET + v)
        for v in (*VERTEBRAE, SACRUM)
    ]
    return table(["name", "region", "vertebra", "disc below it", "its endplates"], rows)


# Outputs


#: Every file of :func:`spineps.outputs.paths.output_paths`: what it is, and when it is written.  Nothing: never.
FILES = {
    "out_spine": ("structures", "always"),
    "out_spine_json": ("sidecar of the structures", "always"),
    "out_spine_tsv": ("labels that occur in it", "always"),
    "out_vert": ("vertebrae, discs, endplates", "always"),
    "out_vert_json": ("sidecar of the vertebrae", "always"),
    "out_vert_tsv": ("labels that occur in it", "always"),
    "out_ctd": ("points and names", "always"),
    "out_snap": ("picture", "always"),
    "out_snap2": (),
    "out_report": ("interactive page", "`--report`"),
    "out_stats": ("measurements", "unless `--no-stats`"),
    "out_stats_json": ("what its columns are", "unless `--no-stats`"),
    "out_prov": ("what made the files", "always"),
    "out_spine_raw": ("structures before cleaning, model's voxel size", "unless `save_raw=False`"),
    "out_spine_native": ("structures before cleaning, the scan's grid", "unless `save_raw=False`"),
    "out_vert_raw": ("vertebrae before cleaning, numbered", "unless `save_raw=False`"),
    "out_uncertainty": ("entropy of the class probabilities, 0 to 1", "`--save-uncertainty`"),
    "out_logits": ("class probabilities, model's voxel size", "`--save-softmax-logits`"),
    "out_spine_modelres": ("structures at the model's voxel size", "`--save-modelres-mask`"),
    "out_vert_modelres": ("vertebrae at the model's voxel size", "`--save-modelres-mask`"),
    "out_debug": ("intermediate volumes", "`--save-debug`"),
    "out_raw": (),
    "out_vibeseg": (),
}


def files(layout: str) -> str:
    """Every file of one scan in one layout; one that :data:`FILES` does not know is an error."""
    from spineps.outputs.paths import derivative_folder, output_paths, scan_from

    dataset = Path("DATASET")
    scan = scan_from(dataset / "rawdata" / "sub-01" / "sub-01_T2w.nii.gz", dataset)
    root = derivative_folder(dataset, layout=layout)

    def place(path: Path) -> str:
        folder = path.parent.relative_to(root).as_posix()
        return code(path.name) if folder == "sub-01" else f"{code(folder + '/')}<br>{code(path.name)}"

    places = output_paths(scan, layout=layout)
    if unknown := sorted(set(places) - set(FILES)):
        raise SystemExit(f"FILES in docs/hooks/pages.py does not say what is in {', '.join(unknown)}")
    rows = [(place(places[key]), *FILES[key], code(key)) for key in FILES if key in places and FILES[key]]
    head = ["file", "what", "written", "key in Python"]
    return table(head, rows) if layout == "published" else table(head[:3], (row[:3] for row in rows))


def columns(which: str) -> str:
    """The columns of a table that is written."""
    from spineps.evaluation.summary import COLUMNS as EVALUATION
    from spineps.outputs.group.table import SCANS, STRUCTURES
    from spineps.outputs.stats import FIRST
    from spineps.phases.measures import COLUMNS, TEXTS

    if which == "stats":
        rows: list[tuple[Any, ...]] = [(code(key), "", "", text, "") for key, text in FIRST.items()]
        rows += [(code(k), ", ".join(c.of), c.unit, c.text, c.source) for k, c in COLUMNS.items()]
        rows += [(code(key), "spine", "", text, "") for key, text in TEXTS.items()]
        return table(["column", "rows", "unit", "definition", "source"], rows)
    if which == "evaluation":
        return ", ".join(map(code, EVALUATION))
    named = {"structures": STRUCTURES, "scans": SCANS}[which]
    return table(["column", "what"], ((code(key), text) for key, text in named.items()))


def attributes(dotted: str) -> str:
    """The documented attributes of a class, as a table."""
    from importlib import import_module

    module, _, name = dotted.rpartition(".")
    text = inspect.getdoc(getattr(import_module(module), name)) or ""
    listed = re.search(r"Attributes:\n(.*)", text, re.S)
    assert listed is not None, dotted
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", listed[1], re.M)
    return table(["field", "what"], ((code(name), _plain(what)) for name, what in entries))


def _plain(text: str) -> str:
    """A docstring's text as Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


# Command line


def commands() -> str:
    """Every command with every argument and option, as its own help tells them."""
    return "\n\n".join(_command(name, command) for name, command in walk())


def walk() -> Iterator[tuple[str, Any]]:
    """All commands of ``spineps`` by their full names."""
    import typer

    from spineps.cli.main import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", {})
        if not inner or (name != "spineps" and getattr(command, "invoke_without_command", False)):
            yield name, command
        for word in sorted(inner, key=lambda word: (word != "sample", word)):
            yield from below(f"{name} {word}", inner[word])

    return below("spineps", typer.main.get_command(app))


def _command(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", (command.help or "").strip(), f"```text\n{usage}\n```"]
    if name == "spineps train":  # hands everything on
        return "\n\n".join([*parts, training()])
    known = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in known if p.param_type_name == "argument"]
    if arguments:
        parts.append(table(["argument", "meaning"], (_parameter(p, context)[:2] for p in arguments)))
    options = [p for p in known if p.param_type_name == "option"]

    panels: dict[str, list[tuple[str, str, str]]] = {}
    for option in options:
        title = getattr(option, "rich_help_panel", None) or "Options"
        panels.setdefault(title, []).append(_parameter(option, context))
    for title, rows in panels.items():
        parts.append(f"**{title}**")
        if any(row[2] for row in rows):
            parts.append(table(["option", "meaning", "default"], rows))
        else:
            parts.append(table(["option", "meaning"], (row[:2] for row in rows)))
    return "\n\n".join(part for part in parts if part)


def _parameter(parameter: Any, context: Any) -> tuple[str, str, str]:
    names, told = parameter.get_help_record(context)
    told, _, extra = told.partition("  [")
    default = re.search(r"default: ([^;\]]+)", extra)
    notes = [note for note in re.split(r"[;\]] ?", extra) if note and not note.startswith("default")]
    return code(names), told + "".join(f" *({note})*" for note in notes), code(default[1]) if default else ""


def spellings() -> str:
    """Flags of SPINEPS 1 that have another name today."""
    from spineps.cli.spelling import RENAMED

    return table(["earlier", "today"], ((code(old), code(new)) for old, new in RENAMED.items()))


def training() -> str:
    """The help of every command of ``spineps train``."""
    from spineps.training.__main__ import _parser

    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for name, parser in commands.choices.items():
        parser.formatter_class = partial(argparse.HelpFormatter, width=100)  # whatever the terminal's width
        parts.append(f"### train {name}\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts)


# Errors


def codes() -> str:
    """Every ErrCode with its exit status and its meaning."""
    from spineps.errors import ErrCode

    meanings = {kind.code: inspect.getdoc(kind) or "" for kind in kinds()}
    rows = [(code(c.name), c.value, c.exit_code, meanings.get(c, OTHER_CODES.get(c.name, ""))) for c in ErrCode]
    return table(["ErrCode", "value", "exit status", "meaning"], rows)


#: Codes that belong to no exception.
OTHER_CODES = {
    "OK": "It worked.",
    "ALL_DONE": "An earlier run has done it already, with the same input, models and options.",
    "UNKNOWN": "Something that this program did not foresee: please report it.",
    "TIMEOUT": "In a data set: the scan took longer than `--timeout` and was ended.",
    "CRASHED": "In a data set: the process that worked on the scan was killed, often for lack of memory.",
}


def kinds() -> list[Any]:
    """All error classes that ``errors.py`` defines, by their exit status."""
    from spineps import errors

    found = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, errors.SpinepsError)]
    return sorted((k for k in found if k is not errors.SpinepsError), key=lambda k: k.code.value)


def messages() -> str:
    """Every message that the sources can raise, by its kind of error."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {node.name: [base.id for base in node.bases if isinstance(base, ast.Name)] for node in classes}
    told = {found for tree in trees for found in raised(tree)}
    parts = []
    for kind in kinds():
        names = {kind.__name__, *(name for name in bases if kind.__name__ in bases[name])}
        # A message that is only a placeholder has its words from elsewhere.
        pairs = {(text, cure) for name, text, cure in told if name in names and not re.fullmatch("‹[^›]*›", text)}
        found = sorted(pairs, key=lambda pair: pair[0].lower())
        parts.append(f"## {kind.code.name}: exit status {kind.code.exit_code}")
        parts.append(f"{inspect.getdoc(kind)} In Python: `{kind.__name__}`.")
        parts.append(table(["message", "what to do"], found))
    return "\n\n".join(parts)


def raised(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Class, message and cure of every error that a module makes; what is filled in later is shown as ‹name›."""
    # Functions that only word an error are looked at where they are called.
    helpers = {
        f.name: f for f in tree.body if isinstance(f, ast.FunctionDef) and _is_error(getattr(f.body[-1], "value", None))
    }
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.FunctionDef, ast.Module)) or getattr(scope, "name", "") in helpers:
            continue
        known = _constants(tree) | (_constants(scope) if scope is not tree else {})
        for node in _own(scope):
            if not isinstance(node, ast.Call):
                continue
            call, words = node, known
            if helper := helpers.get(getattr(node.func, "id", "")):
                given = dict(zip((parameter.arg for parameter in helper.args.args), node.args, strict=False))
                call, words = helper.body[-1].value, known | _constants(helper) | given  # type: ignore[attr-defined]
            if _is_error(call):
                cure = _text(call.args[1], words) if len(call.args) > 1 else ""
                elsewhere = re.fullmatch("‹[^›]*›", cure) is not None
                yield call.func.id, _text(call.args[0], words), "The message says it." if elsewhere else cure  # type: ignore[attr-defined]


def _is_error(node: Any) -> bool:
    return isinstance(node, ast.Call) and bool(node.args) and getattr(node.func, "id", "").endswith("Error")


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function or module, without those of functions inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own(child)


def _constants(scope: ast.AST) -> dict[str, ast.expr]:
    assigned = [n for n in _own(scope) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    texts = [n for n in assigned if isinstance(n.value, (ast.JoinedStr, ast.Constant, ast.IfExp, ast.BinOp))]
    return {n.targets[0].id: n.value for n in texts}  # type: ignore[attr-defined]


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (_text(part, known) for part in (node.body, node.orelse))))
    if isinstance(node, ast.Name) and node.id in known:
        return _text(known[node.id], {k: v for k, v in known.items() if k != node.id})
    return f"‹{_called(node)}›"


def _called(node: ast.expr) -> str:
    """The word that tells a reader most about a value: ``", ".join(ids)`` is shown as its ids."""
    if isinstance(node, ast.Call):
        if getattr(node.func, "id", "") == "len":
            return "number"
        inner = node.args[0] if node.args else getattr(node.func, "value", node.func)
        return _called(inner)
    if isinstance(node, ast.Attribute):
        vague = node.attr in ("name", "parent", "stem") and getattr(node.value, "id", "self") != "self"
        return _called(node.value) if vague else node.attr.strip("_").replace("_", " ").lower()
    if isinstance(node, ast.Name):
        return node.id.strip("_").replace("_", " ").lower()
    inner = next((child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)), None)
    return _called(inner) if inner is not None else "..."


# Whole files


def include(name: str) -> str:
    """A file of the repository as it stands."""
    return (ROOT / name).read_text(encoding="utf-8")


def cards() -> str:
    """The cards of the bundled models, one heading lower than in their own files."""
    names = ("semantic", "semantic/locator", "instance", "labeling")
    found = [SOURCES / "models" / "bundled" / name / "CARD.md" for name in names]
    return "\n\n".join(re.sub(r"^#", "##", path.read_text(encoding="utf-8"), flags=re.M) for path in found)


PARTS: dict[str, Callable[..., str]] = {
    **{f.__name__: f for f in (structures, instances, files, columns, attributes, commands, spellings)},
    **{f.__name__: f for f in (codes, messages, include, cards)},
}
