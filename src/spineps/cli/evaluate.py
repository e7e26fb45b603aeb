"""``spineps evaluate``: how good masks are against a reference."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spineps.cli import flags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from spineps.evaluation.instances import Quality
    from spineps.evaluation.metrics import Score
    from spineps.evaluation.scan import ScanResult
    from spineps.evaluation.summary import Summary

#: Distances in mm, volume of the prediction in ml, its error in per cent of the reference.
_HEADS = ("Dice", "ASSD", "HD95", "ml", "err %")
_SYSTEMS = "spineps, spider (1 vertebra, 2 disc, 3 canal), verse, totalspineseg, totalsegmentator(-v3)"


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Mask, or folder of masks.", metavar="PRED")],
    reference: Annotated[Path, typer.Argument(help="Its reference, or folder of them.", metavar="REF")],
    reference_labels: Annotated[str, typer.Option("--reference-labels", help=f"Of REF: {_SYSTEMS}.")] = "spineps",
    strict: Annotated[bool, typer.Option("--strict", help="Do not merge endplate and body codes.")] = False,
    threshold: Annotated[float, typer.Option("--threshold", help="Smallest IoU of matching instances.")] = 0.5,
    resample: Annotated[bool, typer.Option("--resample", help="Bring PRED to the grid of REF (nearest).")] = False,
    worst: Annotated[int, typer.Option("--worst", help="Scans listed, the worst first.")] = 10,
    tsv: Annotated[Path | None, typer.Option("--tsv", help="Write every number as a table.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Compare masks with a reference: overlap, distances, instances, names."""
    from spineps.cli.report import print_json
    from spineps.evaluation.pairs import find_pairs
    from spineps.evaluation.run import Settings, evaluate_pairs
    from spineps.evaluation.summary import as_document, as_tsv, worst_first
    from spineps.outputs.writer import Writer

    settings = Settings(reference_labels, strict, threshold, resample)
    pairs, alone = find_pairs(prediction, reference, reference_labels != "spineps")
    results, failed = evaluate_pairs(pairs, settings)
    if failed and not results:
        raise failed[0][1]
    document = as_document(results, vars(settings), [str(path) for path in alone])
    document["failed"] = [{"scan": pair.scan, "error": str(error)} for pair, error in failed]
    with Writer() as writer:
        if tsv:
            writer.write(tsv, lambda stream: stream.write(as_tsv(results).encode()))
    if as_json:
        print_json(document)
    else:
        _show(worst_first(results), worst)
    for pair, error in failed:
        typer.echo(f"not compared: {pair.scan}: {error}", err=True)
    for path in alone:
        typer.echo(f"without partner: {path}", err=True)
    if failed:
        raise typer.Exit(failed[0][1].code.exit_code)


def _show(results: Sequence[ScanResult], worst: int) -> None:
    from rich.console import Console

    from spineps.evaluation.summary import summaries

    console = Console(width=None if sys.stdout.isatty() else 120)
    if len(results) == 1:
        console.print(*_one_scan(results[0]), sep="\n")
    else:
        console.print(*_together(summaries(results), len(results)), _worst(results[:worst]), sep="\n")
    for result in results[: worst if len(results) > 1 else 1]:
        lines = [f"{kind}: {q.verdict}" for kind, q in result.instances.items() if q.verdict]
        for line in (*_leftovers(result.instances), *lines, *result.notes):
            console.print(f"{result.scan}: {line}", markup=False, highlight=False, soft_wrap=True)


def _one_scan(result: ScanResult) -> list[Table]:
    tables = []
    if result.structures:
        table = _table(result.scan, "structure", *_HEADS, "")
        for name, score in result.structures.items():
            if score.state != "absent":
                table.add_row(name, *_score_cells(score), score.state if score.state != "both" else "")
        tables.append(table)
    for kind, quality in result.instances.items():
        title = f"{kind}: RQ {_n(quality.rq)}, SQ {_n(quality.sq)}, PQ {_n(quality.pq)}, "
        title += f"names {_n(quality.names_right)}"
        table = _table(title, kind, "named", *_HEADS, "centre")
        for predicted, wanted, score in quality.matched:
            label = _name(predicted) if predicted != wanted else "="
            table.add_row(_name(wanted), label, *_score_cells(score), _n(score.centroid_mm, 1))
        tables.append(table)
    return tables


def _together(found: Mapping[str, Mapping[str, Summary]], scans: int) -> list[Table]:
    parts = _table(f"{scans} scans", "structure", "n", "Dice", "95 %", "median", "5th pc", "ASSD", "HD95")
    kinds = _table("", "instances", "n", "PQ", "95 %", "median", "5th pc", "RQ", "SQ", "names")
    for name, columns in found.items():
        table, first, *others = (
            (parts, "dice", "assd_mm", "hd95_mm") if "dice" in columns else (kinds, "pq", "rq", "sq", "name_accuracy")
        )
        s = columns[first]
        if s.n:
            interval = f"{_n(s.low)}-{_n(s.high)}" if s.n > 1 else "-"
            means = [_n(columns[c].mean, 2 if c.endswith("mm") else 3) for c in others]
            table.add_row(name, str(s.n), _n(s.mean), interval, _n(s.median), _n(s.p5), *means)
    return [table for table in (parts, kinds) if table.row_count]


def _worst(results: Sequence[ScanResult]) -> Table:
    table = _table("the worst first", "scan", "score", "lowest", "of", "PQ", "names")
    for result in results:
        dice = {n: s.dice for n, s in result.structures.items() if not math.isnan(s.dice)}
        lowest = min(dice, key=lambda n: dice[n]) if dice else ""
        vertebrae = result.instances.get("vertebra")
        quality = (_n(vertebrae.pq), _n(vertebrae.names_right)) if vertebrae else ("-", "-")
        table.add_row(result.scan, _n(result.score), _n(dice.get(lowest, math.nan)), lowest, *quality)
    return table


def _leftovers(instances: Mapping[str, Quality]) -> list[str]:
    from spineps.evaluation.instances import names

    lines = [f"missing {kind}: {names(q.missing)}" for kind, q in instances.items() if q.missing]
    return lines + [f"surplus {kind}: {names(q.surplus)}" for kind, q in instances.items() if q.surplus]


def _table(title: str, first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for column in columns:
        # Only the name gives way on a narrow terminal: half a number is worth nothing.
        table.add_column(column, justify="right", no_wrap=True, min_width=11 if column == "95 %" else 5)
    return table


def _score_cells(score: Score) -> tuple[str, ...]:
    distances = (_n(score.assd_mm, 2), _n(score.hd95_mm, 2))
    return (_n(score.dice), *distances, _n(score.volume_mm3 / 1000, 2), _n(score.volume_error_percent, 1))


def _name(label: int) -> str:
    """Of the vertebra; the table's heading says of which kind its rows are."""
    from spineps.anatomy import DISC_OFFSET, instance_name

    return instance_name(label % DISC_OFFSET)


def _n(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
