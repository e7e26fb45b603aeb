"""``spineps measure``: heights, discs, canal and angles of masks that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def measure(
    semantic: Annotated[Path, typer.Argument(help="Mask of structures (seg-spine).")],
    vertebrae: Annotated[Path, typer.Argument(help="Mask of vertebrae (seg-vert), same grid.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Table to write; default beside the vertebrae.")
    ] = None,
    named: Annotated[
        bool, typer.Option("--named/--numbered", help="Values are names (20 = L1), or only numbers.")
    ] = True,
) -> None:
    """Measure existing masks in millimetres and degrees; writes a table (.tsv) and what its columns mean (.json)."""
    from spineps.outputs.stats import write_stats_of

    table, rows = write_stats_of(semantic, vertebrae, out, named)
    typer.echo(f"{rows} structures measured\n{'table':>12}  {table}\n{'columns':>12}  {table.with_suffix('.json')}")
