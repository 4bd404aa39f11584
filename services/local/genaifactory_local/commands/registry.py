"""`genaifactory registry`: the adapters and prompts that were registered, and the stages that people give them."""

from __future__ import annotations

import difflib
import getpass
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory_common.errors import InvalidArgument
from genaifactory_local import state, tracking
from genaifactory_local.commands.options import JsonOption, StateOption, print_json, table
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.tracking.registry import Details, Model, Version
from genaifactory_pipelines.tracking.runs import Summary
from genaifactory_pipelines.tracking.stages import Action

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The registered adapters and prompts in MLflow, and their stages: None, Staging, Production, Archived.",
)
_SHOWN = "%Y-%m-%d %H:%M"
_MEASURED = ("candidate", "production", "difference")

_ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model or prompt.")]
_PromptOption = Annotated[bool, typer.Option("--prompt", help="NAME is a prompt of factory.yaml, and no model.")]
_VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.")]
_ReasonOption = Annotated[str, typer.Option(help="Why; it is kept in the record of stages.")]
_ByOption = Annotated[str, typer.Option(help="Who approved it. Without it: this user.")]


class Stage(StrEnum):
    """Where a version may be promoted to."""

    STAGING = "staging"
    PRODUCTION = "production"


@app.command("list")
def list_models(as_json: JsonOption = False, state_folder: StateOption = state.DEFAULT_FOLDER) -> None:
    """List the registered models and prompts, with the version in Production and the newest one.

    Example: `genaifactory registry list`
    """
    found = tracking.call(state_folder, "list") if tracking.exists(state_folder) else []
    if as_json:
        print_json(found)
        return
    models = [Model.model_validate(each) for each in found]
    if not models:
        print(
            "No model or prompt is registered yet: `genaifactory retrain` registers its adapter, and `genaifactory "
            "evaluate --mlflow` a prompt, once the gate is passed."
        )
        return
    rows = table("name", "kind", "versions", "production", "newest", "registered")
    for model in models:
        newest = model.versions[0] if model.versions else None
        rows.add_row(
            model.name,
            model.kind,
            f"{len(model.versions):,}",
            str(model.production or "none"),
            "none" if newest is None else str(newest.version),
            "" if newest is None else f"{newest.created:{_SHOWN}}",
        )
    Console().print(rows)


@app.command("show")
def show(
    model: _ModelArgument,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="Without it: the newest.")] = None,
    prompt: _PromptOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show all versions, who moved which one to which stage, when and why, and what one version comes of.

    Of that version: its run, gate and metrics, and who approved it; of a prompt also its text, and what differs from
    the version before.

    Example: `genaifactory registry show support 3`
    """
    which = () if version is None else ("--version", str(version))
    found = tracking.call(state_folder, "show", model, *which, *_flags(prompt))
    if as_json:
        print_json(found)
        return
    details = Details.model_validate(found)
    _print(details)
    if details.shown is not None:
        _print_version(details, details.shown)


@app.command("promote")
def promote(
    model: _ModelArgument,
    version: _VersionArgument,
    reason: _ReasonOption,
    to: Annotated[Stage, typer.Option(help="The stage.")] = Stage.PRODUCTION,
    by: _ByOption = "",
    despite_gate: Annotated[bool, typer.Option("--despite-gate", help="Though its run did not pass its gate.")] = False,
    prompt: _PromptOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Move a version to Production, which archives the one that is there, or to Staging.

    Example: `genaifactory registry promote support 3 --reason "better on leave questions"`
    """
    options = ("--despite-gate",) if despite_gate else ()
    action: Action = "stage" if to is Stage.STAGING else "promote"
    _change(action, model, version, by, reason, as_json, state_folder, *options, *_flags(prompt))


@app.command("archive")
def archive(
    model: _ModelArgument,
    version: _VersionArgument,
    reason: _ReasonOption,
    by: _ByOption = "",
    prompt: _PromptOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Archive a version that is not in Production; a rollback does not return to it.

    Example: `genaifactory registry archive support 2 --reason "trained on data with errors"`
    """
    _change("archive", model, version, by, reason, as_json, state_folder, *_flags(prompt))


@app.command("rollback")
def rollback(
    model: _ModelArgument,
    reason: _ReasonOption,
    by: _ByOption = "",
    prompt: _PromptOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Return to the version that was in Production before, and archive the one that is.

    Example: `genaifactory registry rollback support --reason "wrong dates in answers"`
    """
    _change("rollback", model, None, by, reason, as_json, state_folder, *_flags(prompt))


@app.command("open")
def open_server(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI.")] = 5000,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Serve MLflow's UI over the runs of this machine, for this machine alone, until it is interrupted.

    Example: `genaifactory registry open --port 5000`
    """
    command, environment = tracking.server(state_folder, port)
    print(f"MLflow: http://127.0.0.1:{port} (in some seconds; Ctrl-C ends it)", flush=True)
    os.execve(command[0], command, environment)  # noqa: S606


def _change(
    action: Action,
    model: str,
    version: int | None,
    by: str,
    reason: str,
    as_json: bool,
    state_folder: Path,
    *options: str,
) -> None:
    which = () if version is None else ("--version", str(version))
    who = (f"--by={by or _user()}", f"--reason={reason}")  # either may begin with "-"
    found = tracking.call(state_folder, "change", action, model, *which, *who, *options)
    if as_json:
        print_json(found)
        return
    changed = Model.model_validate(found)
    _print(changed)
    if action in ("promote", "rollback"):
        print(f"\n{_to_serve(changed)}")


def _user() -> str:
    """Raises InvalidArgument for a user without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        raise InvalidArgument("Give --by: this user has no name.", field="--by") from None


def _flags(prompt: bool) -> tuple[str, ...]:
    return ("--prompt",) if prompt else ()


def _to_serve(model: Model) -> str:
    """What to do so that the version in Production is served."""
    if model.kind == "prompt":
        served = f"write `prompt: {model.name}@{model.production}` at each of its routes there"
    else:
        served = "see docs/loop.md for how to name the adapter there"
    return (
        f"Nothing that is served has changed: factory.yaml says what is. To serve version {model.production}, {served}."
    )


def _print(model: Model) -> None:
    production = "none" if model.production is None else f"version {model.production}"
    if model.production is not None and not model.has(model.production):
        production += ", which was deleted in MLflow: promote another one"
    print(f"{model.name}: in Production is {production}.\n")
    rows = table("version", "stage", "gate", "registered", "run", "load it from")
    for each in model.versions:
        gate, run = _cell(each.gate or "unknown"), _cell(each.run_id)
        rows.add_row(str(each.version), each.stage, gate, f"{each.created:{_SHOWN}}", run, each.uri)
    Console().print(rows)
    if model.changes:
        history = table("when (UTC)", "who", "what", "why")
        for change in model.changes:
            despite = " despite the gate" if change.despite_gate else ""
            history.add_row(
                f"{change.at:{_SHOWN}}",
                _cell(change.by),
                f"{change.action} {change.version}{despite}",
                _cell(change.reason),
            )
        Console().print("", history)


def _cell(text: str) -> str:
    """A text of MLflow, in a table: whoever may write to MLflow may change it."""
    return escape(printable(text))


def _print_version(details: Details, version: Version) -> None:
    approval, run = details.approval(version.version), details.run
    by = "nobody yet" if approval is None else f"{approval.by}, {approval.at:{_SHOWN}} UTC: {approval.reason}"
    print(f"\nVersion {version.version}")
    print(printable(f"  gate: {version.gate or 'unknown'}"))
    print(printable(f"  approved by: {by}"))
    if run is None:
        print(printable(f"  run: {version.run_id}, which is no longer in MLflow") if version.run_id else "  run: none")
    else:
        _print_run(run, version.run_id)
    if details.kind == "prompt":
        _print_text(details, version)


def _print_run(run: Summary, run_id: str) -> None:
    print(printable(f"  run: {run.name} ({run_id}), {run.started:{_SHOWN}} UTC, experiment {run.experiment}"))
    measured = sorted({name.rpartition("/")[0] for name in run.metrics})
    if measured:
        rows = table("metric", *_MEASURED)
        for name in measured:
            values = (run.metrics.get(f"{name}/{which}") for which in _MEASURED)
            rows.add_row(name, *("" if value is None else f"{value:.4g}" for value in values))
        Console().print("", rows)


def _print_text(details: Details, version: Version) -> None:
    """A prompt's text, and what differs from the version before."""
    print("\nText\n")
    for line in _lines(version):
        print(f"  {line}")
    before = next((each for each in details.versions if each.version < version.version), None)
    if before is None:
        return
    old, new = (f"{details.name}@{each.version}" for each in (before, version))
    print(f"\nWhat differs from version {before.version}\n")
    for line in [*difflib.unified_diff(_lines(before), _lines(version), old, new, lineterm="")] or ["nothing"]:
        print(f"  {line}")


def _lines(version: Version) -> list[str]:
    refusals = (f"refusal {language}: {text}" for language, text in sorted(version.refusal.items()))
    return [printable(line) for line in (*version.text.splitlines(), *refusals)]
