"""`genaifactory drift`: whether questions, searches, answers or ratings differ from those of another time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from genaifactory_common.errors import InvalidArgument
from genaifactory_local import endpoints, monitoring, runs, state
from genaifactory_local.commands.options import NOT_PASSED, JsonOption, KeyOption, StateOption, print_json
from genaifactory_pipelines import windows
from genaifactory_pipelines.drift.verdict import Verdict
from genaifactory_pipelines.steps import drift as steps


def drift(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the run. Given again with the same options and dates, it goes on."
        ),
    ],
    since: Annotated[
        str, typer.Option(help="Judged from when: an age like 24h or 7d, or a date like 2026-11-21.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="Until when, exclusive; like --since. Without it: now.")] = None,
    reference_since: Annotated[str, typer.Option(help="Compared with what was from when on; like --since.")] = "35d",
    reference_until: Annotated[
        str | None, typer.Option(help="Until when, exclusive; like --since. Without it: until --since.")
    ] = None,
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    model: Annotated[str, typer.Option(help="The embedding model.")] = "minilm",
    least: Annotated[int, typer.Option(min=20, help="Windows with fewer conversations are refused.")] = 100,
    false_discovery_rate: Annotated[
        float, typer.Option(min=0.005, max=0.49, help="The chance of an alarm where nothing has drifted.")
    ] = 0.01,
    history: Annotated[
        Path | None, typer.Option(help="File of earlier verdicts: one window alone is then no alarm.")
    ] = None,
    needed: Annotated[
        int, typer.Option(min=1, help="With --history: how many of the last windows must have drifted.")
    ] = 2,
    of: Annotated[int, typer.Option(min=1, help="With --history: how many windows the last ones are.")] = 3,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Compare the record of a week with that of the weeks before: questions, searches, answers, ratings.

    The exit code is 0 for no drift, 3 for drift, 1 for an error.

    Example: `genaifactory drift --since 7d --reference-since 35d --output week`
    """
    now = datetime.now(UTC)
    judged = windows.parse(since, until, now, route=route)
    compared = windows.parse(
        reference_since,
        reference_until or since,
        now,
        route=route,
        options=("--reference-since", "--reference-until" if reference_until else "--since"),
    )
    try:
        wanted = steps.Parameters(
            model=model,
            least=least,
            false_discovery_rate=false_discovery_rate,
            history=history,
            needed=needed,
            of=of,
        )
    except ValidationError:
        raise InvalidArgument("--needed must be at most --of.", field="--needed") from None
    platform = endpoints.find(state_folder)
    if route:
        asyncio.run(monitoring.require_route(platform, key, route))

    async def run() -> steps.Outputs:
        async with runs.context(platform, key, output) as context:
            await steps.reference.run(compared, context)
            await steps.current.run(judged, context)
            return await steps.drift.run(wanted, context)

    found = asyncio.run(run())
    folder = output / steps.drift.name
    if as_json:
        print_json({**found.model_dump(), "verdict": str(folder / steps.VERDICT), "report": str(folder / steps.REPORT)})
    else:
        _print(found, Verdict.model_validate_json((folder / steps.VERDICT).read_bytes()))
        print(f"Verdict: {folder / steps.VERDICT}")
        print(f"Report: {folder / steps.REPORT}")
    if found.alarm:
        raise typer.Exit(NOT_PASSED)


def _print(found: steps.Outputs, verdict: Verdict) -> None:
    for finding in verdict.findings:
        if finding.drifted:
            print(f"{finding.signal}: {finding.sentence}")
    if found.drifted:
        confirmed = {None: "", True: " Earlier windows confirm it.", False: " Earlier windows do not confirm it yet."}
        print(f"Drifted by {', '.join(found.by)}.{confirmed[found.confirmed]}")
    else:
        print("No drift." if not found.confirmed else "No drift in this window, but in enough of those before it.")
    if found.not_judged:
        print(f"Not judged, for too few values: {', '.join(found.not_judged)}.")
