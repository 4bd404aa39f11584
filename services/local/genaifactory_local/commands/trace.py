"""`genaifactory trace`: the way of one request through the services."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory_common.errors import NotFound, Unavailable
from genaifactory_local import ledger, reach, state, traces
from genaifactory_local.commands.options import JsonOption, StateOption, TenantOption, print_json


def trace(
    request: Annotated[
        str, typer.Argument(help="x-request-id of a response (req-...), id of an answer (chatcmpl-...), or: last.")
    ],
    tenant: TenantOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show what each service did for one request, as a tree with times.

    A platform on this machine keeps the spans of the last 2,000 requests of each tenant for a week, if it has no
    collector for them; where it has one, this says under which trace id they are there.

    Example: `genaifactory trace last`
    """
    spans = traces.read(state.State(state_folder.absolute()).spans_file, request)
    if not spans:
        raise NotFound(_elsewhere(request, tenant, state_folder))
    if as_json:
        print_json(traces.plain(spans))
        return
    console = Console()
    root = spans[0]
    wanted = next((span.request_id for span in spans if span.request_id), "")
    console.print(f"[bold]{escape(wanted)}[/bold]  trace {root.trace_id}", soft_wrap=True, highlight=False)
    console.print(traces.table(spans, console.width))
