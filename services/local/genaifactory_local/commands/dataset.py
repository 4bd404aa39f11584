"""`genaifactory dataset`: a dataset to train on, made of the record."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from genaifactory_local import endpoints, monitoring, runs, state
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, print_json
from genaifactory_pipelines import windows
from genaifactory_pipelines.curation import Options
from genaifactory_pipelines.datasets.records import Unrated
from genaifactory_pipelines.steps import collect, curate


def dataset(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the run. Given again with the same options and dates, it goes on."
        ),
    ],
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "30d",
    until: Annotated[str | None, typer.Option(help="Until when, exclusive; like --since. Without it: now.")] = None,
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    policy: Annotated[
        str | None, typer.Option(help="The guardrail policy that masks personal data. Without it: the only one.")
    ] = None,
    unrated: Annotated[Unrated, typer.Option(help="Answers that nobody rated.")] = "leave_out",
    examples: Annotated[Path | None, typer.Option(help="A file of examples to add, as JSON lines.")] = None,
    golden: Annotated[Path | None, typer.Option(help="The golden set, which is kept out, as JSON lines.")] = None,
    least: Annotated[int, typer.Option(min=3, help="Fewer examples are refused.")] = 20,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Make a dataset of rated and corrected answers: masked, without near-duplicates, split without leakage.

    Example: `genaifactory dataset --since 30d --output november`
    """
    window = windows.parse(since, until, datetime.now(UTC), route=route)
    platform = endpoints.find(state_folder)
    if route:
        asyncio.run(monitoring.require_route(platform, key, route))
    wanted = curate.Parameters(
        options=Options(policy=curate.policy(platform.factory(), policy or ""), unrated=unrated, least_examples=least),
        examples=examples,
        golden=golden,
    )

    async def run() -> curate.Outputs:
        async with runs.context(platform, key, output) as context:
            await collect.collect.run(window, context)
            return await curate.curate.run(wanted, context)

    made = asyncio.run(run())
    folder = output / curate.curate.name
    if as_json:
        print_json({**made.model_dump(), "folder": str(folder / curate.DATASET), "report": str(folder / curate.REPORT)})
        return
    print(f"{made.train} examples to train on, {made.validation} to validate, {made.test} to test.")
    print(f"Dataset: {folder / curate.DATASET}")
    print(f"Version {made.version}")
    print(f"Report: {folder / curate.REPORT}")
