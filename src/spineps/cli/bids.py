"""``spineps bids``: the command line of a BIDS App."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from spineps.cli import flags

#: Options of a BIDS App that take several values at once, ``--participant-label 01 02``.
SEVERAL = ("--participant-label", "--session-label")
VALIDATOR = "bids-validator-deno"


class Level(str, Enum):
    """What is analysed."""

    participant = "participant"
    group = "group"


def bids(
    bids_dir: Annotated[Path, typer.Argument(help="The BIDS data set; nothing is written to it.")],
    out_dir: Annotated[Path, typer.Argument(help="The derivative data set.")],
    level: Annotated[Level, typer.Argument(help="participant: every scan. group: tables and page of all results.")],
    participant_label: flags.Participants = None,
    session_label: flags.Sessions = None,
    n_procs: Annotated[int, typer.Option("--n-procs", "--n-cpus", help="Scans at once.")] = 1,
    threads: flags.Threads = None,
    work_dir: Annotated[Path | None, typer.Option("--work-dir", "-w", help="Folder of intermediate masks.")] = None,
    skip_bids_validation: Annotated[
        bool, typer.Option("--skip-bids-validation", help=f"Do not ask {VALIDATOR} about BIDS_DIR.")
    ] = False,
    model_semantic: flags.Semantic = None,
    model_instance: flags.Instance = None,
    model_labeling: flags.Labeling = "auto",
    save_report: flags.Report = False,
    retry_failed: flags.RetryFailed = False,
    cpu: flags.Cpu = False,
    as_json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """BIDS App: spineps bids BIDS_DIR OUT_DIR participant, then the same with group."""
    bids_dir, out_dir = bids_dir.absolute(), out_dir.absolute()
    if level is Level.group:
        from spineps.cli.group import tell_group

        tell_group(out_dir, "", n_procs, as_json, bids_dir.name)
        return
    if not skip_bids_validation:
        validate(bids_dir)
    from spineps.cli import report
    from spineps.cli.batch import run_dataset, tell_counts

    scans_in_rawdata = (bids_dir / "rawdata").is_dir() and not any(bids_dir.glob("sub-*"))
    with report.Reporter(verbose, quiet=as_json) as reporter:
        answer = run_dataset(
            bids_dir,
            (model_semantic, model_instance, model_labeling),
            {"use_cpu": cpu, "threads": threads},
            reporter,
            rawdata_name="rawdata" if scans_in_rawdata else ".",
            derivative_name=str(out_dir),
            layout="bids",
            work_folder=work_dir,
            save_log_data=False,
            participant_label=participant_label or (),
            session_label=session_label or (),
            save_report=save_report,
            retry_failed=retry_failed,
            workers=n_procs if n_procs > 1 else None,
            threads=threads,
        )
    tell_counts(answer, as_json)
    if not as_json:
        for failure in answer["failures"]:
            typer.echo(f"{failure['code']:>14}  {failure['input']}")
    raise typer.Exit(1 if answer["failed"] or not answer["seen"] else 0)


def validate(bids_dir: Path) -> None:
    """Ask the validator, where it is installed, whether this is a BIDS data set.

    Raises:
        InputNotFoundError: it is none.
    """
    from spineps.errors import InputNotFoundError

    cure = "Repair it, or give --skip-bids-validation."
    if not (bids_dir / "dataset_description.json").is_file():
        raise InputNotFoundError(f"{bids_dir} is no BIDS data set: it has no dataset_description.json.", cure)
    program = shutil.which(VALIDATOR)
    if program is None:
        typer.echo(f"note: {VALIDATOR} is not installed; the data set was not validated", err=True)
        return
    answer = subprocess.run([program, "--ignoreWarnings", str(bids_dir)], capture_output=True, text=True, check=False)
    if answer.returncode:
        typer.echo(answer.stdout + answer.stderr, err=True)
        raise InputNotFoundError(f"{VALIDATOR} found errors in {bids_dir}.", cure)


def spread(arguments: Sequence[str]) -> list[str]:
    """``--participant-label 01 02`` as the parser wants it, for the ``bids`` command only.

    >>> spread(["bids", "in", "out", "participant", "--participant-label", "01", "02", "-v"])
    ['bids', 'in', 'out', 'participant', '--participant-label', '01', '--participant-label', '02', '-v']
    """
    if not arguments or arguments[0] != "bids":
        return list(arguments)
    out: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in SEVERAL else ""
            if not option:
                out.append(argument)
        else:
            out += [option, argument] if option else [argument]
    return out
