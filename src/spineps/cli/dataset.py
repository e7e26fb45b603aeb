"""``spineps dataset``, ``spineps dataset status`` and ``spineps slurm-script``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spineps.cli import flags

if TYPE_CHECKING:
    from spineps.cli.report import Reporter
    from spineps.dataset.ledger import Entry
    from spineps.dataset.plan import Plan

#: Failed scans that the summary names; `spineps dataset status --json` names all.
NAMED = 30
dataset_app = typer.Typer(
    help="Segment every scan of a data set. `spineps dataset status DIR` tells how far it is.",
    invoke_without_command=True,
)


@dataset_app.callback()
def dataset(
    context: typer.Context,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", "--directory", "-d", help="Folder of the data set.")
    ] = None,
    rawdata_name: Annotated[
        str, typer.Option("--rawdata-name", "-rn", help="Its folder of scans; '.' for itself.")
    ] = "rawdata",
    scan_list: flags.ScanList = None,
    participant_label: flags.Participants = None,
    session_label: flags.Sessions = None,
    model_semantic: flags.Semantic = None,
    model_instance: flags.Instance = None,
    model_labeling: flags.Labeling = "auto",
    derivative_name: flags.DerivativeName = "derivatives_seg",
    layout: flags.Layout = "published",
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
    stats: flags.Stats = True,
    save_report: flags.Report = False,
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
    dry_run: flags.DryRun = False,
    group: flags.Group = False,
    resume: flags.Resume = True,
    retry_failed: flags.RetryFailed = False,
    verify: flags.Verify = False,
    workers: flags.Workers = None,
    timeout: flags.Timeout = None,
    shard: flags.Shard = None,
    scheduler: flags.Scheduler = None,
    slurm: flags.Slurm = None,
    run_cprofiler: flags.Profile = False,
    as_json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """Segment every scan of a data set; what is done already is left alone, and one bad scan does not end the run."""
    if context.invoked_subcommand is not None:
        return
    if input is None:
        raise typer.BadParameter("Give the folder of the data set.", param_hint="--input / -i / --directory / -d")
    from spineps.cli import report
    from spineps.cli.batch import run_dataset, tell_counts

    with report.Reporter(verbose, quiet=as_json) as reporter, report.profiled(run_cprofiler):
        told = _Told(reporter, dry_run, each=any(x is not None for x in (workers, timeout, scheduler, slurm)))
        try:
            answer = run_dataset(
                input,
                (model_semantic, model_instance, model_labeling),
                {"use_cpu": cpu, "threads": threads, "precision": precision},
                reporter,
                rawdata_name=rawdata_name,
                derivative_name=derivative_name,
                layout=layout,
                ignore_bids_filter=ignore_bids_filter,
                ignore_model_compatibility=ignore_model_compatibility,
                ignore_inference_compatibility=ignore_inference_compatibility,
                save_log_data=save_log,
                snapshot_copy_folder=save_snaps_folder or None,
                save_debug_data=save_debug,
                save_softmax_logits=save_softmax_logits,
                save_uncertainty=save_uncertainty,
                save_modelres_mask=save_modelres_mask,
                save_stats=stats,
                save_report=save_report,
                override_semantic=override_semantic,
                override_instance=override_instance,
                override_postpair=override_postpair,
                override_ctd=override_ctd,
                tta=tta,
                scan_list=scan_list,
                participant_label=participant_label or (),
                session_label=session_label or (),
                resume=resume,
                retry_failed=retry_failed,
                verify=verify,
                workers=int(workers) if workers and workers.isdigit() else workers,
                threads=threads,
                timeout=timeout,
                shard=shard,
                scheduler=scheduler,
                slurm=slurm,
                review=told.review,
                listener=told.ended,
                **flags.steps(crop, n4, enforce_12_thoracic, batch_size, amp, step_size),
            )
        except KeyboardInterrupt as stop:
            typer.echo("interrupted; the same command goes on from here", err=True)
            if not as_json:
                told.table()
            raise typer.Exit(128 + getattr(stop, "signal", 2)) from stop
    if dry_run:
        told.show_plan(as_json)
        raise typer.Exit
    tell_counts(answer, as_json)
    if not as_json:
        told.table()
    if group:
        from spineps.cli.group import tell_group
        from spineps.outputs.paths import derivative_folder

        results = derivative_folder(input.absolute(), derivative_name, layout)
        tell_group(results, "", title=input.absolute().name, quiet=as_json)
    nothing = not answer["seen"] and not shard
    raise typer.Exit(1 if answer["failed"] or nothing else 0)


@dataset_app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="The data set.")],
    derivative_name: flags.DerivativeName = "derivatives_seg",
    as_json: flags.Json = False,
) -> None:
    """How far a data set is: counts, failures by reason, throughput, what is being done."""
    from spineps.cli.report import print_json
    from spineps.dataset.ledger import FOLDER
    from spineps.dataset.status import dataset_status
    from spineps.outputs.paths import derivative_folder

    places = [folder, *(derivative_folder(folder, derivative_name, layout) for layout in ("published", "bids"))]
    here = [place for place in places if place.name == FOLDER or (place / FOLDER).is_dir()]
    found = dataset_status(here[0] if here else places[1])
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['scans']} scans")
    for name, number in found["counts"].items():
        typer.echo(f"{number:>8}  {'at work' if name == 'started' else name}")
    if found["scans_per_hour"]:
        typer.echo(
            f"{found['scans_per_hour']:g} scans per hour in the last hour of work, {found['seconds_per_scan']:g} s "
            f"each, at most {found['peak_mb']:.0f} MB"
        )
    for row in found["failures"]:
        typer.echo(f"{row['count']:>8}  {row['code']:<14} {row['message']}")
    for row in found["running"]:
        typer.echo(f"{row['seconds']:>7}s  {row['scan']}  ({row['worker']})")


def slurm_script(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The data set.")],
    slurm: Annotated[
        str, typer.Option("--slurm", help="jobs=16,cores=4,memory=8GB,time=08:00:00,partition=...,account=...,gpus=1")
    ] = "",
    logs: Annotated[Path | None, typer.Option("--logs", help="Folder of the jobs' output.")] = None,
    program: Annotated[str, typer.Option("--program", help="How spineps is called on the nodes.")] = "spineps",
) -> None:
    """Print an sbatch array that does a data set in parts; further options are those of `spineps dataset`."""
    from spineps.dataset.cluster import parse_slurm
    from spineps.dataset.cluster import slurm_script as script

    # Better a wrong option is found now than by every job of the array.
    typer.main.get_command(dataset_app).make_context("dataset", ["-d", str(folder), *context.args], parent=context)
    where = logs or folder / "logs"
    typer.echo(script(folder.absolute(), parse_slurm(slurm), context.args, program, where.absolute()), nl=False)


class _Told:
    """What the run tells on its way, kept for the end."""

    def __init__(self, reporter: Reporter, dry_run: bool, each: bool) -> None:
        self.reporter, self.dry_run, self.each = reporter, dry_run, each
        self.plan: Plan | None = None
        self.failures: list[Entry] = []
        self.ends = 0

    def review(self, plan: Plan) -> bool:
        """The plan, before anything is done."""
        self.plan = plan
        if not (self.dry_run or self.reporter.quiet):
            self.reporter.say(_overview(plan))
        return not self.dry_run

    def ended(self, entry: Entry) -> None:
        """One scan is over."""
        self.ends += 1
        if entry.status in ("failed", "crashed"):
            self.failures.append(entry)
        if self.each and not self.reporter.quiet and self.plan is not None:
            count = len(self.plan.todo) + len(self.plan.claimed)
            self.reporter.say(f"[{self.ends}/{count}] {entry.scan}: {entry.status}, {entry.seconds:.1f} s")

    def table(self) -> None:
        """Failures by reason, and the first of them by name."""
        from spineps.dataset.plan import explained

        before = self.plan.failed if self.plan else []
        failures = [*self.failures, *before]
        for (code, message), number in explained(failures).most_common():
            typer.echo(f"{number:>8} x {code}: {message}")
        for entry in failures[:NAMED]:
            again = "  (not tried again: --retry-failed)" if entry in before else ""
            typer.echo(f"{entry.code:>14}  {entry.scan}{again}")
        if len(failures) > NAMED:
            typer.echo(f"{'...':>14}  and {len(failures) - NAMED} more: spineps dataset status DIR --json")

    def show_plan(self, as_json: bool) -> None:
        """``--dry-run``."""
        from spineps.cli.report import print_json

        plan = self.plan
        assert plan is not None
        rows = [("to do", t.name, f"{t.pair[0].name} {t.pair[1].name}", _attempt(t.attempt)) for t in plan.todo]
        rows += [("done already", e.scan, e.pair, "") for e in plan.finished]
        rows += [("failed before", e.scan, e.pair, f"{e.code}: {e.message} (--retry-failed)") for e in plan.failed]
        rows += [("at work", t.name, f"{t.pair[0].name} {t.pair[1].name}", "in another process") for t in plan.claimed]
        rows += [("left out", str(path), "", why) for path, why in sorted(plan.left_out)]
        if as_json:
            columns = ("status", "scan", "pair", "why")
            print_json({"plan": [dict(zip(columns, row, strict=True)) for row in rows]})
            return
        width = max((len(row[1]) for row in rows), default=0)
        for what, name, pair, why in rows:
            typer.echo(f"{what:<14} {name:<{width}}  {pair:<8}  {why}".rstrip())
        typer.echo(_overview(plan))


def _overview(plan: Plan) -> str:
    counts: dict[str, Any] = {
        "to do": len(plan.todo),
        "done already": len(plan.finished),
        "failed before": len(plan.failed),
        "at work elsewhere": len(plan.claimed),
        "files left out": len(plan.left_out),
    }
    text = ", ".join(f"{number} {what}" for what, number in counts.items() if number or what == "to do")
    unreadable = Counter(why for _, why in plan.left_out if why.startswith("cannot be read"))
    return text + "".join(f"\n{number} folder(s): {why}" for why, number in unreadable.items())


def _attempt(number: int) -> str:
    return f"attempt {number}" if number > 1 else ""
