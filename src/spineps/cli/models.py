"""``spineps models``: which models there are, and bringing weights in, checking and removing them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spineps.cli import flags

if TYPE_CHECKING:
    from spineps.cli.report import Reporter
    from spineps.models.download import Progress
    from spineps.models.installed import Verdict

models_app = typer.Typer(no_args_is_help=True, help="The models that can be asked for; published weights.")
Ids = Annotated[list[str], typer.Argument(help="Names, as 'spineps models list' shows them.", show_default=False)]


@models_app.command("list")
def models_list(as_json: flags.Json = False) -> None:
    """All models, bundled and installed."""
    from spineps.cli.report import print_json
    from spineps.models.installed import receipt_of, size
    from spineps.models.registry import available_models

    rows: list[dict[str, Any]] = []
    for entry in available_models():
        home = entry.folder.parent if "nnUNetPlans" in entry.folder.name else entry.folder
        pinned = receipt_of(home) is not None if entry.origin == "installed" else None
        rows.append(
            {
                "name": entry.name,
                "phase": entry.phase.name.lower(),
                "origin": entry.origin if entry.runnable else f"{entry.origin}, incomplete",
                "modalities": " ".join(m.name for m in entry.config.modalities),
                "log_name": entry.config.log_name,
                "megabytes": round(size(entry.folder) / 1e6, 1),
                "pinned": pinned,
            }
        )
    if as_json:
        print_json({"models": rows})
        return
    for row in rows:
        known = "" if row["pinned"] is None else ", pinned" if row["pinned"] else ", by hand"
        text = "{name:<14} {phase:<9} {origin:<10} {megabytes:>7.1f} MB  {log_name}  [{modalities}]".format(**row)
        typer.echo(text + known)


@models_app.command("install")
def models_install(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="t2w, t1w, vibe, ct, instance, ct_instance, t2w_labeling, ct_labeling or all.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Zip archive, folder or address with one model or several.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is installed.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network (SPINEPS_OFFLINE=1).")] = False,
    accept_new: Annotated[
        bool, typer.Option("--accept-new", help="Take an archive that has changed at its address.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds without a byte: try again.")] = 30.0,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Failures in a row before giving up.")] = 5,
    verbose: flags.Verbose = False,
) -> None:
    """Install published weights, or a network of your own with --from."""
    from spineps.cli.report import Reporter
    from spineps.errors import OptionError
    from spineps.models.download import Patience
    from spineps.models.install import How, install, releases

    if not names and source is None:
        raise OptionError("Nothing to install was named.", "For example: spineps models install t2w instance")
    try:
        with Reporter(verbose, quiet=True) as reporter:
            patience = Patience(timeout=timeout, attempts=attempts)
            # One at a time, so that each is told when it is there.
            steps = [names or []] if source is not None else [[known.name] for known in releases(names or [])]
            for step in steps:
                with _bar(reporter) as bar:
                    found = install(step, source, How(force, offline, accept_new, patience, bar))
                for done in found:
                    typer.echo(f"{done.name:<14} {'installed' if done.new else 'was there'}  {done.folder}")
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None


@models_app.command("verify")
def models_verify(names: Annotated[list[str] | None, typer.Argument(help="All without.")] = None) -> None:
    """Hash all files of installed models and compare with what was recorded at installation."""
    from spineps.errors import ErrCode
    from spineps.models.installed import verify

    verdicts: list[Verdict] = [verdict for name in names or [None] for verdict in verify(name)]  # type: ignore[list-item]
    for verdict in verdicts:
        typer.echo(f"{verdict.name:<14} {verdict.state:<10}  {verdict.folder}")
        for problem in verdict.problems:
            typer.echo(f"{'':<14} {problem}")
        if verdict.problems:
            typer.echo(f"{'':<14} to mend it: spineps models install {verdict.name} --force")
    if not verdicts:
        typer.echo("No model is installed; the bundled ones belong to the package.")
    if any(verdict.state == "damaged" for verdict in verdicts):
        raise typer.Exit(ErrCode.MODEL.exit_code)


@models_app.command("path")
def models_path(name: Annotated[str | None, typer.Argument(help="The models folder without.")] = None) -> None:
    """Where a model lies, or the models folder."""
    from spineps.models.registry import UnknownModelError, available_models, models_folder
    from spineps.models.releases import release

    if name is None:
        typer.echo(models_folder())
        return
    answers = {entry.name: entry.folder for entry in reversed(available_models())}
    known = release(name)
    for key in (name.lower(), known.name if known else ""):
        if key in answers:
            typer.echo(answers[key])
            return
    raise UnknownModelError(f"There is no model {name!r}.", "See: spineps models list")


@models_app.command("remove")
def models_remove(names: Ids, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete installed models; the bundled ones answer again."""
    from spineps.errors import OptionError
    from spineps.models.installed import homes_of, remove

    homes: dict[Path, None] = dict.fromkeys(home for name in names for home in homes_of(name))
    for home in homes:
        if not yes and not sys.stdin.isatty():
            raise OptionError(f"{home} would be removed.", "Confirm with --yes.")
        if yes or typer.confirm(f"Remove {home}?"):
            remove(home)
            typer.echo(f"removed {home}")


@contextmanager
def _bar(reporter: Reporter) -> Iterator[Progress | None]:
    """A bar of megabytes on a terminal, shown from the first byte on; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("download", total=None, visible=False)
        reporter.bars = bars  # log lines go beside the bar
        try:
            yield lambda done, total: bars.update(task, completed=done, total=total, visible=True)
        finally:
            reporter.bars = None
