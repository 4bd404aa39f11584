"""One step by itself, as a pod and another environment run it:

    python -m genaifactory_pipelines train --run november --parameters '{"base": "/models/llama"}'

Prints the step's outputs as JSON. The key of the gateway is in GENAIFACTORY_API_KEY. An error is one line on standard
error, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_pipelines import steps
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import Context, Step

_NAMES = sorted(module.name for module in pkgutil.iter_modules(steps.__path__))


async def _run(name: str, run: Path, parameters: str, gateway: str) -> str:
    step: Step[Any, Any] = getattr(importlib.import_module(f"{steps.__name__}.{name}"), name)
    try:
        wanted = step.parameters.model_validate_json(parameters)
    except ValidationError as error:
        raise InvalidArgument(f"--parameters: {first_problem(error)}", field="--parameters") from None
    async with channels.connect(gateway, api_key=os.environ.get("GENAIFACTORY_API_KEY", "")) as channel:
        context = Context(run, Gateway(channel), Progress(Console(stderr=True)))
        outputs = await step.run(wanted, context)
    return str(outputs.model_dump_json(indent=2))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m genaifactory_pipelines", description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=_NAMES)
    parser.add_argument("--run", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--parameters", default="{}", help="The step's parameters, as JSON.")
    parser.add_argument("--gateway", default="127.0.0.1:8081", help="Address of the gateway's gRPC API.")
    given = parser.parse_args()
    try:
        print(asyncio.run(_run(given.step, given.run, given.parameters, given.gateway)))
    except FactoryError as error:
        print(f"{given.step}: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
