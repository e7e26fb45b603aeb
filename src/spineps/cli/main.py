"""``spineps``: the commands.  Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spineps.cli import flags
from spineps.cli.models import models_app
from spineps.cli.spelling import modern

app = typer.Typer(
    name="spineps",
    help="Segment and name every vertebra of a spine scan (MR of any contrast, CT). Start with: spineps demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app, name="models")


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
    input: Annotated[str, typer.Option("--input", "-i", help="The scan, .nii or .nii.gz.")],
    model_semantic: flags.Semantic = None,
    model_instance: flags.Instance = None,
    model_labeling: flags.Labeling = "auto",
    derivative_name: flags.DerivativeName = "derivatives_seg",
    save_debug: flags.SaveDebug = False,
    save_softmax_logits: flags.SaveSoftmax = False,
    save_uncertainty: flags.SaveUncertainty = False,
    save_modelres_mask: flags.SaveModelres = False,
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
            derivative_name=derivative_name,
            override=_overridden(override_semantic, override_instance, override_postpair or override_ctd),
            snapshot_copy_folder=snapshot_folder,
            ignore_compatibility_issues=ignore_inference_compatibility,
            progress=reporter,
            save_debug_data=save_debug,
            save_softmax_logits=save_softmax_logits,
            save_uncertainty=save_uncertainty,
            save_modelres_mask=save_modelres_mask,
            tta=tta,
            **_steps(crop, n4, enforce_12_thoracic, batch_size, amp, step_size),
        )
    if as_json:
        report.print_json(report.summary(result, input))
    elif result.success:
        done = "was done already" if result.errcode == "ALL_DONE" else f"took {result.seconds:.1f} s"
        typer.echo(f"{Path(input).name} {done}")
        report.print_files(result)
    raise typer.Exit(result.errcode.exit_code)


@app.command()
def dataset(
    input: Annotated[Path, typer.Option("--input", "-i", "--directory", "-d", help="Folder of the data set.")],
    rawdata_name: Annotated[
        str, typer.Option("--rawdata-name", "-rn", help="Its folder of scans; '.' for itself.")
    ] = "rawdata",
    model_semantic: flags.Semantic = None,
    model_instance: flags.Instance = None,
    model_labeling: flags.Labeling = "t2w_labeling",
    derivative_name: flags.DerivativeName = "derivatives_seg",
    ignore_bids_filter: Annotated[
        bool, typer.Option("--ignore-bids-filter", "-ibf", help="Take every NIfTI file.", rich_help_panel=flags.RUN)
    ] = False,
    ignore_model_compatibility: Annotated[
        bool,
        typer.Option("--ignore-model-compatibility", "-imc", help="Any model.", rich_help_panel=flags.RUN),
    ] = False,
    save_log: Annotated[
        bool, typer.Option("--save-log", "-sl", help="Write <folder>/logs/...", rich_help_panel=flags.OUTPUT)
    ] = False,
    save_snaps_folder: Annotated[
        bool,
        typer.Option(
            "--save-snaps-folder", "-ssf", help="Collect pictures in <folder>/snaps_seg.", rich_help_panel=flags.OUTPUT
        ),
    ] = False,
    save_debug: flags.SaveDebug = False,
    save_softmax_logits: flags.SaveSoftmax = False,
    save_uncertainty: flags.SaveUncertainty = False,
    save_modelres_mask: flags.SaveModelres = False,
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
    run_cprofiler: flags.Profile = False,
    as_json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Segment every scan of a BIDS data set, one after the other."""
    from spineps.cli import report
    from spineps.cli.batch import run_dataset

    with report.Reporter(verbose, quiet=as_json) as reporter, report.profiled(run_cprofiler):
        answer = run_dataset(
            input,
            (model_semantic, model_instance, model_labeling),
            {"use_cpu": cpu, "threads": threads},
            reporter,
            rawdata_name=rawdata_name,
            derivative_name=derivative_name,
            ignore_bids_filter=ignore_bids_filter,
            ignore_model_compatibility=ignore_model_compatibility,
            ignore_inference_compatibility=ignore_inference_compatibility,
            save_log_data=save_log,
            snapshot_copy_folder=save_snaps_folder or None,
            save_debug_data=save_debug,
            save_softmax_logits=save_softmax_logits,
            save_uncertainty=save_uncertainty,
            save_modelres_mask=save_modelres_mask,
            override_semantic=override_semantic,
            override_instance=override_instance,
            override_postpair=override_postpair,
            override_ctd=override_ctd,
            tta=tta,
            **_steps(crop, n4, enforce_12_thoracic, batch_size, amp, step_size),
        )
    if as_json:
        answer["failures"] = [{"code": code.name, "input": str(path)} for code, path in answer["failures"]]
        report.print_json(answer)
    else:
        typer.echo("{seen} scans: {processed} processed, {already_done} done already, {failed} failed".format(**answer))
        for code, path in answer["failures"]:
            typer.echo(f"{code.name:>14}  {path}")
    raise typer.Exit(1 if answer["failed"] or not answer["seen"] else 0)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``spineps`` command."""
    given = modern(sys.argv[1:] if arguments is None else arguments)
    from spineps.errors import SpinepsError

    # Importing rich's panels takes as long as all the rest, and the overview looks as well without them.
    app.rich_markup_mode = "rich" if given and not given[0].startswith("-") else None
    try:
        app(args=given, prog_name="spineps")
    except SpinepsError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.code.exit_code) from error


def _steps(crop: bool, n4: bool, enforce: bool, batch_size: int, amp: bool, step_size: float | None) -> dict[str, Any]:
    """Flags as the keywords of the entry points."""
    return {
        "proc_sem_crop_input": crop,
        "proc_sem_n4_bias_correction": n4,
        "proc_lab_force_no_tl_anomaly": enforce,
        "proc_inst_batch_size": batch_size,
        "proc_inst_amp": amp,
        "proc_sem_step_size": step_size,
    }


def _overridden(semantic: bool, instance: bool, final: bool) -> frozenset[str]:
    flags_ = {"semantic": semantic, "instance": instance, "final": final}
    return frozenset(stage for stage, flag in flags_.items() if flag)
