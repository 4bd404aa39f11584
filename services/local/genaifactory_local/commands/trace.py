"""`genaifactory trace`: the path of one request through the services."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import NotFound, Unavailable
from genaifactory_common.span_store import Span
from genaifactory_local import endpoints, monitoring, state, traces
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, print_json


def trace(
    request: Annotated[
        str, typer.Argument(help="x-request-id of a response (req-...), id of an answer (chatcmpl-...), or: last.")
    ],
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show what each service did for one request, as a tree with times.

    A platform on this machine stores the spans of the last 2,000 requests of each tenant for a week, unless it sends
    them to a collector; then the command prints the trace id to look up there.

    Example: `genaifactory trace last`
    """
    platform = _running(state_folder)
    if platform is not None and platform.collector:
        _print_where(platform, request, key)
        return
    file = state.State(state_folder.absolute()).spans_file
    spans = traces.read(file, request)
    if not spans:
        raise NotFound(
            f"No spans of '{request}' are in {file}: unknown, or older than those that are kept. Ask a question, "
            f"then give: {traces.LAST}."
        )
    if as_json:
        print_json(traces.plain(spans))
        return
    console = Console()
    console.print(_heading(spans), soft_wrap=True, highlight=False)
    console.print(traces.table(spans, console.width))


def _running(state_folder: Path) -> endpoints.Platform | None:
    """None when no platform runs; its spans are in the state folder all the same."""
    try:
        return endpoints.find(state_folder)
    except Unavailable:
        return None


def _print_where(platform: endpoints.Platform, request: str, key: str | None) -> None:
    wanted = () if request == traces.LAST else (traces.request_id(request),)

    async def look() -> monitor_pb2.Interaction | None:
        filter_ = monitor_pb2.InteractionFilter(request_ids=wanted)
        async with (
            platform.connected(key) as channel,
            aclosing(monitoring.interactions(channel, filter_, most=1)) as found,
        ):
            return await anext(found, None)

    record = asyncio.run(look())
    if record is None:
        raise NotFound(f"{request} is not on record: it is unknown, too old, or was refused before it was answered.")
    print(f"{record.request_id} has the trace id {record.trace_id}; its spans were sent to {platform.collector}.")


def _heading(spans: Sequence[Span]) -> str:
    request = next((span.request_id for span in spans if span.request_id), "")
    return f"[bold]{escape(request)}[/bold]  trace {spans[0].trace_id}"
