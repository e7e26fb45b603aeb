"""``spineps group``: tables and a page of a whole data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spineps.cli import flags


def group(
    folder: Annotated[Path, typer.Argument(help="The data set, or its folder of results.")],
    derivative_name: flags.DerivativeName = "derivatives_seg",
    threads: Annotated[int, typer.Option("--threads", "-t", help="Masks read at once.")] = 2,
    as_json: flags.Json = False,
) -> None:
    """Write a table of all vertebrae and discs, one of all scans with their flags, and a page to look through them."""
    tell_group(folder, derivative_name, threads, as_json)


def tell_group(
    folder: Path, derivative_name: str, threads: int = 2, as_json: bool = False, title: str = "", quiet: bool = False
) -> None:
    """Do it and say what came out."""
    from spineps.cli.report import print_json
    from spineps.dataset.report import report_group

    done = report_group(folder, derivative_name, title, threads)
    answer: dict[str, Any] = {
        "scans": done.scans,
        "measured": done.measured,
        "flags": done.flags,
        "table": str(done.table),
        "page": str(done.page),
    }
    if as_json:
        print_json(answer)
    if as_json or quiet:
        return
    flagged = ", ".join(f"{number} {code}" for code, number in sorted(done.flags.items(), key=lambda item: -item[1]))
    typer.echo(f"{done.scans} scans, {done.measured} of them measured now; flags: {flagged or 'none'}")
    typer.echo(f"{'table':>12}  {done.table}\n{'page':>12}  {done.page}")
