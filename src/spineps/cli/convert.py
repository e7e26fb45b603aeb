"""``spineps convert-labels``: masks in the numbers of other tools, colour tables for ITK-SNAP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TOOLS = "spineps, totalspineseg, totalsegmentator, totalsegmentator-v3, verse"


def convert_labels(
    input: Annotated[Path, typer.Argument(help="Vertebra mask (seg-vert, or the other tool's).", metavar="IN")],
    output: Annotated[Path, typer.Argument(help="The mask to write, .nii.gz.", metavar="OUT")],
    to: Annotated[str, typer.Option("--to", help=f"One of {_TOOLS}.")],
    source: Annotated[str, typer.Option("--from", help=f"One of {_TOOLS}.")] = "spineps",
    structures: Annotated[
        Path | None, typer.Option("--structures", help="The scan's seg-spine mask: adds cord and canal.")
    ] = None,
    itksnap: Annotated[Path | None, typer.Option("--itksnap", help="Also write ITK-SNAP's table of labels.")] = None,
) -> None:
    """Renumber a mask for another tool; tells what that tool has no number for."""
    from spineps.evaluation.convert import color_table, converted
    from spineps.evaluation.numbering import NUMBERINGS, lost_names
    from spineps.evaluation.run import read_mask
    from spineps.outputs.writer import Writer

    mask = read_mask(input)
    result, lost = converted(mask, source, to, read_mask(structures) if structures else None)
    with Writer() as writer:
        writer.mask(output, result)
        if itksnap:
            writer.write(itksnap, lambda stream: stream.write(color_table(result.array, to).encode()))
    typer.echo(f"{output}: {to}. {NUMBERINGS[to].note}")
    if lost:
        typer.echo(f"left out: {', '.join(lost_names(sorted(lost), source))}", err=True)
