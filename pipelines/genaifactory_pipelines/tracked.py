"""What the command line runs where MLflow is installed: the registry, and what a run was made from.

    python -m genaifactory_pipelines.tracked show support

prints JSON. MLFLOW_TRACKING_URI says where MLflow is. An error is one line on standard error, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.tracking import client, registry, runs
from genaifactory_pipelines.tracking.kinds import KINDS, MODELS, PROMPTS, Kind
from genaifactory_pipelines.tracking.stages import MAX_TEXT


async def _list(given: argparse.Namespace, tracking: client.Tracking) -> Any:
    return [model.model_dump(mode="json") for kind in KINDS.values() for model in await registry.models(tracking, kind)]


async def _show(given: argparse.Namespace, tracking: client.Tracking) -> Any:
    return (await registry.details(tracking, given.model, given.version, _kind(given))).model_dump(mode="json")


async def _change(given: argparse.Namespace, tracking: client.Tracking) -> Any:
    reason = given.reason.strip()
    if not 0 < len(reason) <= MAX_TEXT:
        raise InvalidArgument(f"The reason must have 1 to {MAX_TEXT} characters.", field="--reason")
    changed = await registry.change(
        tracking,
        given.model,
        given.version,
        given.action,
        by=given.by,
        reason=reason,
        despite_gate=given.despite_gate,
        kind=_kind(given),
    )
    return changed.model_dump(mode="json")


def _kind(given: argparse.Namespace) -> Kind:
    return PROMPTS if given.prompt else MODELS


async def _fetch(given: argparse.Namespace, tracking: client.Tracking) -> Any:
    await runs.fetch(tracking, given.run_id, given.folder, given.names)
    return {}


_COMMANDS = {"list": _list, "show": _show, "change": _change, "fetch": _fetch}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m genaifactory_pipelines.tracked", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="Every registered model and prompt.")
    show = commands.add_parser("show", help="One of them, with the run of a version.")
    show.add_argument("model")
    show.add_argument("--version", type=int, help="Without it: the newest.")
    change = commands.add_parser("change", help="Adds to the record of stages.")
    change.add_argument("action", choices=("stage", "promote", "archive", "rollback"))
    change.add_argument("model")
    change.add_argument("--version", type=int, help="Not for a rollback.")
    change.add_argument("--by", required=True, help="Who approved it.")
    change.add_argument("--reason", required=True)
    change.add_argument("--despite-gate", action="store_true", help="The version's run did not pass its gate.")
    for each in (show, change):
        each.add_argument("--prompt", action="store_true", help="It is a prompt, and no model.")
    fetch = commands.add_parser("fetch", help="Replaces a folder with artifacts of a run.")
    fetch.add_argument("run_id")
    fetch.add_argument("folder", type=Path)
    fetch.add_argument("names", nargs="+", help="Folders of artifacts.")
    return parser


def main() -> None:
    """Runs the command line."""
    given = _parser().parse_args()
    say = Progress(Console(stderr=True)).line

    async def run() -> Any:
        tracking = await asyncio.to_thread(client.from_environment, say)
        return await _COMMANDS[given.command](given, tracking)

    try:
        print(json.dumps(asyncio.run(run()), ensure_ascii=False))
    except FactoryError as error:
        print(f"genaifactory: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
