"""`genaifactory blocked`: what guardrails blocked or masked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_local import endpoints, guarded, monitoring, state
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, print_json, table
from genaifactory_local.guarded import Enforced
from genaifactory_pipelines import windows

_NARROW_COLUMNS = 116
_STYLES = {"blocked": "red", "masked": "yellow"}


def blocked(
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "7d",
    summary: Annotated[bool, typer.Option("--summary", help="Count by rule instead.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most requests to show, newest first.")] = 1000,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show what guardrails blocked or masked, and by which rule; never the text itself.

    Example: `genaifactory blocked --since 24h --summary`
    """
    start = windows.moment(since, datetime.now(UTC), "--since")
    platform = endpoints.find(state_folder)
    wanted = monitor_pb2.InteractionFilter(
        start_time=monitoring.timestamp(start), guardrail_action=types_pb2.ACTION_MASK
    )

    async def read() -> list[monitor_pb2.Interaction]:
        async with platform.connected(key) as channel:
            return [item async for item in monitoring.interactions(channel, wanted, most=limit + 1)]

    found = [(record, guarded.enforced(record)) for record in asyncio.run(read())]
    records = found[:limit]
    if as_json:
        print_json(_summary(records) if summary else [_plain(*each) for each in records])
    elif not records:
        print(f"Nothing was blocked or masked since {start.astimezone():%Y-%m-%d %H:%M}.")
    else:
        console = Console()
        console.print(_summary_table(records) if summary else _table(records, console.width))
    if len(found) > limit:
        Console(stderr=True).print(f"Only the newest {limit} requests are shown; --limit shows more.")


_Records = list[tuple[monitor_pb2.Interaction, list[Enforced]]]


def _table(records: _Records, width: int) -> Table:
    """A line for each rule on a request; in a narrow terminal two for each request."""
    if width < _NARROW_COLUMNS:
        shown = Table(box=None, show_header=False, pad_edge=False)
        for record, items in records:
            shown.add_row(f"{_time(record)}  {record.request_id}  {escape(f'{record.route}  {record.key_id}')}")
            shown.add_row(f"  [{_STYLES[items[0].rule.action]}]{escape(guarded.in_words(items))}[/]" if items else "")
        return shown
    shown = table("Time", "Request", "Key", "Route", "Action", "In/out", "Rule", "Policy")
    for record, items in records:
        for item in items:
            rule = item.rule
            shown.add_row(
                _time(record),
                record.request_id,
                escape(record.key_id),
                escape(record.route),
                f"[{_STYLES[rule.action]}]{rule.action}[/]",
                rule.direction,
                escape(f"{rule.entity} x{item.findings}" if item.findings > 1 else rule.entity),
                escape(rule.policy),
            )
    return shown


def _time(record: monitor_pb2.Interaction) -> str:
    return f"{record.start_time.ToDatetime(UTC).astimezone():%m-%d %H:%M:%S}"


def _summary_table(records: _Records) -> Table:
    shown = table("Rule", "Policy", "In/out", "Action")
    for heading in ("Requests", "Findings"):
        shown.add_column(heading, justify="right")
    for rule, requests, findings in guarded.summary(items for _, items in records):
        action = f"[{_STYLES[rule.action]}]{rule.action}[/]"
        shown.add_row(
            escape(rule.entity), escape(rule.policy), rule.direction, action, f"{requests:,}", f"{findings:,}"
        )
    return shown


def _plain(record: monitor_pb2.Interaction, items: list[Enforced]) -> dict[str, Any]:
    return {
        "time": record.start_time.ToDatetime(UTC).isoformat(),
        "request_id": record.request_id,
        "key": record.key_id,
        "route": record.route,
        "enforced": [item.rule._asdict() | {"findings": item.findings} for item in items],
    }


def _summary(records: _Records) -> list[dict[str, Any]]:
    return [
        rule._asdict() | {"requests": requests, "findings": findings}
        for rule, requests, findings in guarded.summary(items for _, items in records)
    ]
