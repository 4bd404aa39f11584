"""`genaifactory registry`: the adapters that were registered, and the stages that people give them."""

from __future__ import annotations

import getpass
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory_local import state, tracking
from genaifactory_local.commands.options import JsonOption, StateOption, print_json, table
from genaifactory_pipelines.tracking.registry import Model
from genaifactory_pipelines.tracking.stages import Action

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The registered adapters in MLflow, and their stages: None, Staging, Production, Archived.",
)
_SHOWN = "%Y-%m-%d %H:%M"

_ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.")]
_VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.")]
_ReasonOption = Annotated[str, typer.Option(help="Why; it is kept in the record of stages.")]
_ByOption = Annotated[str, typer.Option(help="Who approved it. Without it: this user.")]


class Stage(StrEnum):
    """Where a version may be promoted to."""

    STAGING = "staging"
    PRODUCTION = "production"


@app.command("list")
def list_models(as_json: JsonOption = False, state_folder: StateOption = state.DEFAULT_FOLDER) -> None:
    """List the registered models, with the version in Production and the newest one.

    Example: `genaifactory registry list`
    """
    found = tracking.call(state_folder, "list") if tracking.exists(state_folder) else []
    if as_json:
        print_json(found)
        return
    models = [Model.model_validate(each) for each in found]
    if not models:
        print("No model is registered yet: a run of the pipeline that passes its gate registers its adapter.")
        return
    rows = table("model", "versions", "production", "newest", "registered")
    for model in models:
        newest = model.versions[0] if model.versions else None
        rows.add_row(
            model.name,
            f"{len(model.versions):,}",
            str(model.production or "none"),
            "none" if newest is None else str(newest.version),
            "" if newest is None else f"{newest.created:{_SHOWN}}",
        )
    Console().print(rows)


@app.command("show")
def show(model: _ModelArgument, as_json: JsonOption = False, state_folder: StateOption = state.DEFAULT_FOLDER) -> None:
    """Show a model's versions, each with its run, and who moved which one to which stage, when and why.

    Example: `genaifactory registry show support`
    """
    _print(tracking.call(state_folder, "show", model), as_json)


@app.command("promote")
def promote(
    model: _ModelArgument,
    version: _VersionArgument,
    reason: _ReasonOption,
    to: Annotated[Stage, typer.Option(help="The stage.")] = Stage.PRODUCTION,
    by: _ByOption = "",
    despite_gate: Annotated[bool, typer.Option("--despite-gate", help="Though its run did not pass its gate.")] = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Move a version to Production, which archives the one that is there, or to Staging.

    Example: `genaifactory registry promote support 3 --reason "better on leave questions"`
    """
    options = ("--despite-gate",) if despite_gate else ()
    action: Action = "stage" if to is Stage.STAGING else "promote"
    _change(action, model, version, by, reason, as_json, state_folder, *options)


@app.command("archive")
def archive(
    model: _ModelArgument,
    version: _VersionArgument,
    reason: _ReasonOption,
    by: _ByOption = "",
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Archive a version that is not in Production; a rollback does not return to it.

    Example: `genaifactory registry archive support 2 --reason "trained on data with errors"`
    """
    _change("archive", model, version, by, reason, as_json, state_folder)


@app.command("rollback")
def rollback(
    model: _ModelArgument,
    reason: _ReasonOption,
    by: _ByOption = "",
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Return to the version that was in Production before, and archive the one that is.

    Example: `genaifactory registry rollback support --reason "wrong dates in answers"`
    """
    _change("rollback", model, None, by, reason, as_json, state_folder)


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
    who = (f"--by={by or getpass.getuser()}", f"--reason={reason}")  # either may begin with "-"
    _print(tracking.call(state_folder, "change", action, model, *which, *who, *options), as_json)


def _print(found: object, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    model = Model.model_validate(found)
    production = "none" if model.production is None else f"version {model.production}"
    print(f"{model.name}: in Production is {production}.\n")
    rows = table("version", "stage", "gate", "registered", "run", "load it from")
    for each in model.versions:
        gate = each.gate or "unknown"
        rows.add_row(str(each.version), each.stage, gate, f"{each.created:{_SHOWN}}", each.run_id, each.uri)
    Console().print(rows)
    if model.changes:
        history = table("when (UTC)", "who", "what", "why")
        for change in model.changes:
            despite = " despite the gate" if change.despite_gate else ""
            history.add_row(
                f"{change.at:{_SHOWN}}",
                escape(change.by),
                f"{change.action} {change.version}{despite}",
                escape(change.reason),
            )
        Console().print("", history)
