"""``spineps report``: a page to look through for every scan that is segmented."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spineps.cli import flags


def report(
    what: Annotated[Path, typer.Argument(metavar="SCAN|DATASET", help="A segmented scan, a data set, or its results.")],
    masks: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--masks", metavar="STRUCTURES VERTEBRAE", help="Two masks of the scan, instead of results."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page of one scan; default: beside it.")] = None,
    derivative_name: flags.DerivativeName = "derivatives_seg",
    again: Annotated[bool, typer.Option("--again", help="Also pages that are up to date.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Write an HTML file per scan: slices, 3-D, masks, names, measurements; opens in any browser, without a network."""
    from spineps.cli.report import print_json
    from spineps.dataset.reports import Reports, report_dataset, report_scan
    from spineps.errors import OptionError

    if what.is_dir():
        if masks is not None or out is not None:
            raise OptionError("--masks and --out are for one scan.", "Give the scan, not a folder.")
        done = report_dataset(what, derivative_name, again)
    else:
        page, written = report_scan(what, derivative_name, masks, out, again)
        done = Reports([page], int(written))
    if as_json:
        print_json({"pages": list(map(str, done.pages)), "written": done.written, "failed": dict(done.failed)})
    else:
        if what.is_dir():
            typer.echo(
                f"{len(done.pages)} reports, {done.written} of them written now, {len(done.failed)} not possible"
            )
        else:
            typer.echo(f"{'report':>12}  {done.pages[0]}{'' if done.written else ' (up to date)'}")
        for name, why in done.failed:
            typer.echo(f"{'no report':>12}  {name}: {why}")
    raise typer.Exit(1 if done.failed else 0)
