"""`genaifactory drift`: whether questions, searches, answers or ratings differ from those of another time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import endpoints, monitoring, runs, state
from genaifactory_local.commands.options import NOT_PASSED, JsonOption, KeyOption, StateOption, print_json, table
from genaifactory_pipelines import windows
from genaifactory_pipelines.drift import record
from genaifactory_pipelines.drift.verdict import Verdict
from genaifactory_pipelines.steps import drift as steps


def drift(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the run. Given again with the same options and dates, it goes on."
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show the last verdicts that monitor has stored, and judge nothing.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, max=500, help="With --history: how many.")] = 20,
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
    needed: Annotated[int, typer.Option(min=1, help="An alarm needs so many drifted windows among the last.")] = 1,
    of: Annotated[int, typer.Option(min=1, max=100, help="How many windows the last ones are, this one included.")] = 1,
    no_store: Annotated[bool, typer.Option("--no-store", help="Do not store the verdict in monitor.")] = False,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Compare the record of a week with that of the weeks before: questions, searches, answers, ratings.

    The exit code is 0 for no alarm, 3 for an alarm, 1 for an error.

    Example: `genaifactory drift --since 7d --reference-since 35d --output week`
    """
    if history:
        _show(endpoints.find(state_folder), key, route or None, last, as_json=as_json)
        return
    if output is None:
        raise InvalidArgument("Give --output, a folder for the run, or --history.", field="--output")
    folder = output / steps.drift.name
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
            needed=needed,
            of=of,
            store=not no_store,
        )
    except ValidationError:
        raise InvalidArgument(
            "--needed must be at most --of, and --of can be more than 1 only without --no-store.", field="--of"
        ) from None
    platform = endpoints.find(state_folder)
    if route:
        asyncio.run(monitoring.require_route(platform, key, route))

    async def run() -> steps.Outputs:
        async with runs.context(platform, key, output) as context:
            await steps.reference.run(compared, context)
            await steps.current.run(judged, context)
            return await steps.drift.run(wanted, context)

    found = asyncio.run(run())
    if as_json:
        print_json({**found.model_dump(), "verdict": str(folder / steps.VERDICT), "report": str(folder / steps.REPORT)})
    else:
        _print(found, Verdict.model_validate_json((folder / steps.VERDICT).read_bytes()))
        print(f"Verdict: {folder / steps.VERDICT}")
        print(f"Report: {folder / steps.REPORT}")
    if found.outcome == "alarm":
        raise typer.Exit(NOT_PASSED)


def _print(found: steps.Outputs, verdict: Verdict) -> None:
    for finding in verdict.findings:
        if finding.drifted:
            print(f"{finding.signal}: {finding.sentence}")
    print(f"Drifted by {', '.join(found.by)}." if found.drifted else "No drift.")
    if found.outcome == "warning":
        print("No alarm yet: too few of the windows before have drifted.")
    elif found.outcome == "alarm" and not found.drifted:
        print("Alarm: not this window, but enough of those before it have drifted.")
    if found.not_judged:
        print(f"Not judged, for too few values: {', '.join(found.not_judged)}.")


def _show(platform: endpoints.Platform, key: str | None, route: str | None, most: int, *, as_json: bool) -> None:
    reports = asyncio.run(monitoring.drift_reports(platform, key, route, most=most))
    if as_json:
        print_json([_plain(each) for each in reports])
        return
    if not reports:
        print("No verdict is stored" + (f" on the route '{route}'." if route else "."))
        return
    shown = table("Window until", "Route", "Verdict", "Drifted", "By", "Judged")
    for each in reports:
        plain = _plain(each)
        shown.add_row(
            f"{each.current.end_time.ToDatetime():%Y-%m-%d %H:%M}",
            escape(each.route or "all"),
            plain["verdict"],
            f"{each.drifted} of {each.windows}",
            ", ".join(plain["by"]),
            f"{each.time.ToDatetime():%Y-%m-%d %H:%M}",
        )
    Console().print(shown)


def _plain(report: monitor_pb2.DriftReport) -> dict[str, Any]:
    return {
        "report_id": report.report_id,
        "route": report.route,
        "since": report.current.start_time.ToDatetime(UTC).isoformat(),
        "until": report.current.end_time.ToDatetime(UTC).isoformat(),
        "verdict": record.OUTCOMES.get(report.verdict, "unknown"),
        "drifted": report.drifted,
        "windows": report.windows,
        "needed": report.needed,
        "by": [signal.name for signal in report.signals if signal.drifted],
        "judged": report.time.ToDatetime(UTC).isoformat(),
        "key": report.key_id,
    }
