"""``spineps``: the commands.  Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spineps.cli import flags
from spineps.cli.bids import bids, spread
from spineps.cli.convert import convert_labels, export
from spineps.cli.dataset import dataset_app, slurm_script
from spineps.cli.dicom import dicom_seg as dicom_seg_command
from spineps.cli.dicom import dicom_series
from spineps.cli.evaluate import evaluate
from spineps.cli.group import group
from spineps.cli.html import report as report_command
from spineps.cli.measure import measure
from spineps.cli.models import models_app
from spineps.cli.spelling import modern

#: As a user meets them: try, segment, look, measure, pass on, then models and training.
ORDER = (
    *("demo", "sample", "dataset", "slurm-script", "bids", "report", "group", "measure", "evaluate", "export"),
    *("convert-labels", "dicom-series", "dicom-seg", "models", "train", "phantom"),
)


class InOrder(TyperGroup):
    """Commands in :data:`ORDER`, others after them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="spineps",
    cls=InOrder,
    help="Segment and name every vertebra of a spine scan (MR of any contrast, CT). Start with: spineps demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app, name="models")
app.add_typer(dataset_app, name="dataset")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(slurm_script)
app.command()(group)
app.command("report")(report_command)
app.command()(bids)
app.command()(measure)
app.command()(evaluate)
app.command()(export)
app.command()(convert_labels)
app.command("dicom-seg")(dicom_seg_command)
app.command()(dicom_series)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        import spineps

        typer.echo(spineps.__version__)
        raise typer.Exit


@app.command()
def sample(
    input: Annotated[str, typer.Option("--input", "-i", help="The scan: .nii, .nii.gz or a DICOM folder.")],
    model_semantic: flags.Semantic = None,
    model_instance: flags.Instance = None,
    model_labeling: flags.Labeling = "auto",
    derivative_name: flags.DerivativeName = "derivatives_seg",
    layout: flags.Layout = "published",
    series: flags.Series = None,
    dicom_seg: flags.DicomSeg = False,
    save_debug: flags.SaveDebug = False,
    save_softmax_logits: flags.SaveSoftmax = False,
    save_uncertainty: flags.SaveUncertainty = False,
    save_modelres_mask: flags.SaveModelres = False,
    stats: flags.Stats = True,
    save_report: flags.Report = False,
    snapshot_folder: flags.SnapsFolder = None,
    override_semantic: flags.OverrideSemantic = False,
    override_instance: flags.OverrideInstance = False,
    override_postpair: flags.OverridePostpair = False,
    override_ctd: flags.OverrideCtd = False,
    ignore_inference_compatibility: flags.IgnoreInference = False,
    crop: flags.Crop = True,
    n4: flags.N4 = True,
    enforce_12_thoracic: flags.Enforce12 = False,
    batch_size: flags.BatchSize = 4,
    amp: flags.Amp = False,
    step_size: flags.StepSize = None,
    tta: flags.Tta = None,
    cpu: flags.Cpu = False,
    threads: flags.Threads = None,
    precision: flags.Precision = None,
    run_cprofiler: flags.Profile = False,
    as_json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Segment one scan; the results go into a folder beside it."""
    from spineps.cli import report
    from spineps.seg_run import segment

    with report.Reporter(verbose, quiet=as_json) as reporter, report.profiled(run_cprofiler):
        result = segment(
            input,
            model_semantic=model_semantic,
            model_instance=model_instance,
            model_labeling=model_labeling,
            use_cpu=cpu,
            threads=threads,
            precision=precision,
            derivative_name=derivative_name,
            layout=layout,
            series=series,
            dicom_seg=dicom_seg,
            override=_overridden(override_semantic, override_instance, override_postpair or override_ctd),
            snapshot_copy_folder=snapshot_folder,
            ignore_compatibility_issues=ignore_inference_compatibility,
            progress=reporter,
            save_debug_data=save_debug,
            save_softmax_logits=save_softmax_logits,
            save_uncertainty=save_uncertainty,
            save_modelres_mask=save_modelres_mask,
            save_stats=stats,
            save_report=save_report,
            tta=tta,
            **flags.steps(crop, n4, enforce_12_thoracic, batch_size, amp, step_size),
        )
    if as_json:
        report.print_json(report.summary(result, input))
    elif result.success:
        done = "was done already" if result.errcode == "ALL_DONE" else f"took {result.seconds:.1f} s"
        typer.echo(f"{Path(input).name} {done}")
        report.print_files(result)
    raise typer.Exit(result.errcode.exit_code)


@app.command()
def demo(
    input: Annotated[str | None, typer.Option("--input", "-i", help="Your own scan, not the examples.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("spineps-demo"),
    threads: flags.Threads = None,
    verbose: flags.Verbose = False,
) -> None:
    """Try it on a real crop and a generated scan, or on your own."""
    from spineps.cli.demo import run_demo

    raise typer.Exit(run_demo(input, out, threads, verbose))


@app.command()
def phantom(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("spineps-phantom"),
    region: Annotated[str, typer.Option("--region", help="lumbar, thoracic, cervical, sacral or any.")] = "lumbar",
    contrast: Annotated[str, typer.Option("--contrast", help="T2, T1, STIR, CT, Dixon, random or any.")] = "T2",
    seed: Annotated[int, typer.Option("--seed", help="Another number, another person.")] = 1,
) -> None:
    """Write a generated scan with its exact masks."""
    from spineps.cli.demo import write_phantom

    for path in write_phantom(out, region, contrast, seed).values():
        typer.echo(path)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Train or fine-tune the networks: spineps train --help."""
    from spineps.training.__main__ import main as training

    raise typer.Exit(training(context.args))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``spineps`` command."""
    given = spread(modern(sys.argv[1:] if arguments is None else arguments))
    from spineps.errors import SpinepsError

    # Importing rich's panels takes as long as all the rest, and the overview looks as well without them.
    app.rich_markup_mode = "rich" if given and not given[0].startswith("-") else None
    try:
        app(args=given, prog_name="spineps")
    except SpinepsError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.code.exit_code) from error


def _overridden(semantic: bool, instance: bool, final: bool) -> frozenset[str]:
    flags_ = {"semantic": semantic, "instance": instance, "final": final}
    return frozenset(stage for stage, flag in flags_.items() if flag)
