"""``spineps dicom-series`` and ``spineps dicom-seg``: what a DICOM folder holds, masks as DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spineps.cli import flags


def dicom_series(folder: Annotated[Path, typer.Argument(help="DICOM folder or file.")]) -> None:
    """List the series of a DICOM folder, and which of them can be segmented."""
    from spineps.outputs.dicom.series import list_series, table

    typer.echo(table(list_series(folder)))


def dicom_seg(
    mask: Annotated[Path, typer.Argument(help="Mask of structures or vertebrae, .nii.gz.")],
    source: Annotated[Path, typer.Option("--source", help="DICOM folder or file of the scan.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default beside the mask.")] = None,
    series: flags.Series = None,
    labelmap: Annotated[
        bool, typer.Option("--labelmap", help="Label map instead of one frame per segment; few viewers read it yet.")
    ] = False,
) -> None:
    """Write a mask as DICOM segmentation object, frame by frame on its scan."""
    from spineps.outputs.dicom.seg import seg_path, write_seg
    from spineps.outputs.dicom.series import series_of

    path = out or seg_path(mask)
    for warning in write_seg(mask, series_of(source, series), path, labelmap):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(path)
