"""One task of a workflow, as its pod runs it:

    python -m genaifactory_pipelines.workflows evaluate gate --name RUN --created TIME --volume FOLDER --parameters JSON

Prints the step's outputs as JSON, and writes those that Argo reads into files. The variables of
genaifactory_common.client name the gateway. An error is one line on standard error and in the message of the pod; the
exit status is one of exits.py, by which Argo knows whether to start the pod again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from rich.console import Console

from genaifactory_common import client, settings
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_pipelines import exits
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.gateway import connected
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows.protocol import NOBODY, Decision, Surroundings, Task, text
from genaifactory_pipelines.workflows.registry import WORKFLOWS

_MESSAGE_BYTES = 2_000


async def _run(task: Task[Any], given: Values, around: Surroundings) -> Values:
    async with connected() as gateway:
        return await task.work(given, around, Context(around.run, gateway, Progress(Console(stderr=True))))


def parsed(kind: type[Values], text: str) -> Values:
    """A workflow's parameters out of Argo's JSON of them, a list of names and texts. Raises InvalidArgument."""
    try:
        found = {each["name"]: each["value"] for each in json.loads(text)}
        return kind.model_validate_strings(found)
    except ValidationError as error:
        raise InvalidArgument(f"Parameter {first_problem(error)}", field="--parameters") from None
    except (ValueError, TypeError, KeyError):
        raise InvalidArgument("--parameters must be Argo's JSON of the parameters.", field="--parameters") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m genaifactory_pipelines.workflows", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("workflow", choices=sorted(WORKFLOWS))
    parser.add_argument("task")
    parser.add_argument("--name", required=True, help="Name of the run.")
    parser.add_argument("--created", type=datetime.fromisoformat, required=True, help="When the run began.")
    parser.add_argument("--volume", type=Path, required=True, help="The volume that workflows share.")
    parser.add_argument("--parameters", required=True, help="The workflow's parameters, as Argo's JSON.")
    parser.add_argument("--decision", default=NOBODY.decision, help="What came of the approval before the task.")
    parser.add_argument("--reason", default="", help="Why.")
    parser.add_argument("--status", default="", help="How the workflow ended, for its last task.")
    parser.add_argument("--outputs", type=Path, help="Folder for the outputs that Argo reads, a file each.")
    parser.add_argument("--message", type=Path, help="File for the reason of a failure, which Kubernetes shows.")
    given = parser.parse_args(arguments)
    workflow = WORKFLOWS[given.workflow]
    task = workflow.task(given.task)
    if task is None:
        parser.error(f"the workflow '{given.workflow}' has no task '{given.task}'")
    try:
        around = Surroundings(
            name=given.name,
            created=given.created,
            volume=given.volume,
            factory_file=settings.load(client.Settings).factory_file,
            decision=Decision(decision=given.decision, reason=given.reason),
            status=given.status,
        )
        outputs = asyncio.run(_run(task, parsed(workflow.parameters, given.parameters), around))
    except FactoryError as error:
        _end(f"{given.task}: {error.message}", exits.of(error), given.message)
    print(outputs.model_dump_json(indent=2))
    if given.outputs:
        given.outputs.mkdir(parents=True, exist_ok=True)
        for name in task.outputs:
            (given.outputs / name).write_text(text(getattr(outputs, name)), encoding="utf-8")
    if message := task.not_passed(outputs):
        _end(message, exits.NOT_PASSED, given.message)


def _end(message: str, status: int, file: Path | None) -> NoReturn:
    print(message, file=sys.stderr)
    if file is not None:
        file.write_bytes(message.encode()[:_MESSAGE_BYTES])
    sys.exit(status)


if __name__ == "__main__":
    main()
