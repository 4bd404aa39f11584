"""`genaifactory train`: a LoRA adapter out of a dataset."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from genaifactory_common.errors import InvalidArgument
from genaifactory_local import interpreters, runs
from genaifactory_local.commands.options import JsonOption, print_json
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.steps import train as step
from genaifactory_pipelines.training.options import Method, Options

MethodOption = Annotated[
    Method | None, typer.Option(help="Imitate the outputs, prefer them to rejected ones, or both. Without it: sft.")
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="The same seed and dataset give the same adapter. Without it: 0.")
]


def train(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run, in which `genaifactory dataset` wrote the dataset."),
    ],
    base: Annotated[str, typer.Option(help="The base model: a folder, or hf://ORG/NAME.")],
    served_as: Annotated[
        str | None, typer.Option(help="The base's name in factory.yaml, where it is not served from the same place.")
    ] = None,
    method: MethodOption = None,
    seed: SeedOption = None,
    parameters: Annotated[
        Path | None, typer.Option(help="A JSON file of more parameters; docs/training.md lists them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA adapter on a dataset. Given again with the same options, it goes on where it was.

    Example: `genaifactory train --output november --base ~/models/Qwen3-0.6B`
    """
    where = interpreters.of([step.train.name])
    given = {"base": base_of(base), "served_as": served_as, "method": method, "seed": seed}
    values = read(parameters) | {name: value for name, value in given.items() if value is not None}
    try:
        wanted = Options.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(f"--parameters: {first_problem(error)}", field="--parameters") from None

    asyncio.run(runs.elsewhere(where[step.train.name], step.train, wanted, output))
    found = step.train.of(output)
    folder = output / step.train.name
    adapter, report = folder / step.ADAPTER, folder / step.REPORT
    if as_json:
        print_json({**found.model_dump(), "adapter": str(adapter), "report": str(report)})
        return
    print(f"Adapter: {adapter}")
    print(f"SHA-256 {found.sha256}")
    print(f"Report: {report}")
    print(f"Serve it: genaifactory adapters load NAME {adapter}")


def base_of(given: str) -> str:
    """The base model as a step reads it: the whole path of a folder, else what was given."""
    local = Path(given).expanduser()
    return str(local.resolve()) if local.is_dir() else given


def read(path: Path | None) -> dict[str, Any]:
    """The parameters of a JSON file; none without a file. Raises InvalidArgument."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field="--parameters") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} must hold a JSON object of parameters.", field="--parameters")
    return found
