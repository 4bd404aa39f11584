"""One step by itself, as a pod and another environment run it:

    python -m genaifactory_pipelines train --run november --parameters '{"base": "/models/llama"}'

`--parameters -` reads them from standard input, for what is long or private: arguments are shown to every user of the
machine. Without --parameters they are made of RUN/plan.json, as those of a step of the DAG `retrain` (retrain.py).

`withdraw` in place of a step unloads the adapter that a run has loaded, unless factory.yaml (GENAIFACTORY_FACTORY_FILE)
names it.

Prints the step's outputs as JSON. The key of the gateway is in GENAIFACTORY_API_KEY; in a pod the variables of
genaifactory_common.client name the gateway. An error is one line on standard error, and the exit status is one of
exits.py.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import pkgutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from genaifactory_common import client, settings, specs
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_pipelines import exits, retrain, steps
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.gateway import LOCAL_ADDRESS, connected
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import load
from genaifactory_pipelines.values import Values

_NAMES = sorted(module.name for module in pkgutil.iter_modules(steps.__path__))
_WITHDRAW = "withdraw"
_STDIN = "-"
_PARENT_INTERVAL_SECONDS = 1.0


async def _run(name: str, run: Path, parameters: str | bytes | None, gateway: str) -> str:
    async with connected(gateway) as found:
        context = Context(run, found, Progress(Console(stderr=True)))
        if name == _WITHDRAW:
            factory = settings.load(client.Settings).factory_file
            return json.dumps({"unloaded": await load.withdraw(context, lambda: specs.load(factory))})
        step: Step[Any, Any] = getattr(importlib.import_module(f"{steps.__name__}.{name}"), name)
        wanted = _planned(name, run) if parameters is None else _given(step, parameters)
        return str((await step.run(wanted, context)).model_dump_json(indent=2))


def _given(step: Step[Any, Any], parameters: str | bytes) -> Values:
    try:
        wanted: Values = step.parameters.model_validate_json(parameters)
    except ValidationError as error:
        raise InvalidArgument(f"--parameters: {first_problem(error)}", field="--parameters") from None
    return wanted


def _planned(name: str, run: Path) -> Values:
    plan = retrain.stored(run)
    stage = next((each for each in retrain.STAGES if each.step.name == name), None)
    if plan is None or stage is None:
        raise InvalidArgument(
            f"'{name}' needs --parameters: {run} has no {retrain.PLAN}, or the step is not one of retrain.",
            field="--parameters",
        )
    return stage.parameters(plan, run)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, in any way: a killed command leaves no step behind. Steps go on from
    what a killed one has left."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_INTERVAL_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m genaifactory_pipelines", description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=[*_NAMES, _WITHDRAW])
    parser.add_argument("--run", type=Path, required=True, help="Folder of the run.")
    parser.add_argument(
        "--parameters", help="The step's parameters, as JSON; -: from standard input. Without it: of the run's plan."
    )
    parser.add_argument("--parent", type=int, help="The process that starts this one; it ends when that has ended.")
    parser.add_argument("--gateway", default=LOCAL_ADDRESS, help="Address of the gateway's gRPC API.")
    given = parser.parse_args()
    if given.parent is not None:
        _end_with(given.parent)
    parameters = sys.stdin.buffer.read() if given.parameters == _STDIN else given.parameters
    try:
        print(asyncio.run(_run(given.step, given.run, parameters, given.gateway)))
    except FactoryError as error:
        print(f"{given.step}: {error.message}", file=sys.stderr)
        sys.exit(exits.of(error))


if __name__ == "__main__":
    main()
