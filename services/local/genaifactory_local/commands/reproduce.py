"""`genaifactory reproduce`: a recorded run is made again and compared."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory_local import endpoints, interpreters, runs, state, tracking
from genaifactory_local.commands import train as training
from genaifactory_local.commands.options import NOT_PASSED, JsonOption, KeyOption, StateOption, print_json, table
from genaifactory_pipelines import reproduce as rebuilding
from genaifactory_pipelines.reproduce import Comparison, Given
from genaifactory_pipelines.steps import train
from genaifactory_pipelines.tracking.runs import fetched


def reproduce(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="Id of the run in MLflow.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in which it is made again. Given again, it goes on.")
    ],
    base: Annotated[str, typer.Option(help="The base model, where it is at another place than it was.")] = "",
    golden: Annotated[
        Path | None, typer.Option(help="The golden set, where it was not recorded and is at another place.")
    ] = None,
    examples: Annotated[Path | None, typer.Option(help="The file of examples, likewise.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Allowed relative difference of the training's metrics.")
    ] = rebuilding.TOLERANCE,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Make the dataset and the adapter of a recorded run again, from its id alone, and compare them with what it has.

    Exit status 3: something is not the same.

    Example: `genaifactory reproduce 0a1b2c3d4e5f60718293a4b5c6d7e8f9 -o again`
    """
    where = interpreters.of([train.train.name])
    platform = endpoints.find(state_folder)
    recorded = output / rebuilding.RECORDED
    if fetched(recorded) != run_id:
        tracking.call(state_folder, "fetch", run_id, str(recorded.absolute()), *rebuilding.NEEDED)
    if threads := rebuilding.threads(recorded):
        os.environ["OMP_NUM_THREADS"] = threads
    given = Given(base=training.base_of(base) if base else "", golden=golden, examples=examples, tolerance=tolerance)

    async def run() -> Comparison:
        async with runs.context(platform, key, output) as context:
            execute = partial(runs.execute, interpreters=where)
            return await rebuilding.reproduce(output, given, context, execute)

    found = asyncio.run(run())
    if as_json:
        print_json(found.model_dump())
    else:
        _print(found)
    if not found.same:
        raise typer.Exit(NOT_PASSED)


def _print(found: Comparison) -> None:
    rows = table("", "recorded", "now", "")
    for row in found.rows:
        rows.add_row(row.what, escape(row.recorded), escape(row.now), "same" if row.same else "differs")
    Console().print(rows)
    for difference in found.environment:
        print(f"environment: {difference}")
    print("The run was reproduced." if found.same else "The run was not reproduced.")
