"""``spineps export`` and ``spineps convert-labels``: masks for other programs, and theirs for us."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spineps.cli import flags

_TOOLS = "spineps, totalspineseg, totalsegmentator, totalsegmentator-v3, verse"


def convert_labels(
    input: Annotated[
        Path, typer.Argument(help="Vertebra mask of ours or of the other tool; any mask saved by Slicer.", metavar="IN")
    ],
    output: Annotated[Path, typer.Argument(help="The mask to write, .nii.gz.", metavar="OUT")],
    to: Annotated[str, typer.Option("--to", help=f"One of {_TOOLS}.")] = "spineps",
    source: Annotated[str, typer.Option("--from", help=f"One of {_TOOLS}.")] = "spineps",
    structures: Annotated[
        Path | None, typer.Option("--structures", help="The scan's seg-spine mask: adds cord and canal.")
    ] = None,
    itksnap: Annotated[Path | None, typer.Option("--itksnap", help="Also write ITK-SNAP's table of labels.")] = None,
) -> None:
    """Renumber a mask for another tool, or bring one corrected in 3D Slicer (.seg.nrrd) back; tells what is lost."""
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


def export(
    path: Annotated[
        Path, typer.Argument(help="Data set, folder of results, scan, mask or record (_prov.json).", metavar="RESULT")
    ],
    to: Annotated[
        str, typer.Option("--to", help="slicer, itksnap, totalspineseg, totalsegmentator, totalsegmentator-v3, verse.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default beside the masks.")] = None,
    derivative_name: flags.DerivativeName = "derivatives_seg",
) -> None:
    """Hand results to another program: 3D Slicer, ITK-SNAP, or another tool's numbers."""
    from spineps.evaluation.export import export as write
    from spineps.evaluation.export import find_results

    for found in find_results(path, derivative_name):
        written, lost = write(found, to, out / found.below if out else None)
        for file in written:
            typer.echo(file)
        if lost:
            typer.echo(f"left out: {', '.join(lost)}", err=True)
