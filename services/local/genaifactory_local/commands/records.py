"""`genaifactory usage` and `genaifactory export`: the record of requests."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import endpoints, monitoring, state
from genaifactory_local import plot as bars
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, print_json
from genaifactory_pipelines import windows


def usage(
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "30d",
    plot: Annotated[bool, typer.Option("--plot", help="Draw a bar for each day instead.")] = False,
    of: Annotated[bars.Measure, typer.Option(help="What --plot draws.")] = "requests",
    by: Annotated[bars.Group, typer.Option(help="What divides the bars of --plot.")] = "model",
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show requests, tokens and cost by day, key and model.

    Example: `genaifactory usage --since 7d --plot`
    """
    if plot and as_json:
        raise InvalidArgument("--plot draws and --json prints for programs; give one of them.", field="--plot")
    start = windows.moment(since, datetime.now(UTC), "--since")
    platform = endpoints.find(state_folder)

    async def read() -> list[gateway_pb2.UsageRow]:
        async with platform.connected(key) as channel:
            return await monitoring.usage(channel, start)

    rows = asyncio.run(read())
    if as_json:
        print_json(
            [
                {
                    "day": row.day,
                    "key": row.key_id,
                    "model": row.model,
                    "requests": row.requests,
                    "errors": row.errors,
                    "prompt_tokens": row.usage.prompt_tokens,
                    "completion_tokens": row.usage.completion_tokens,
                    "cached_prompt_tokens": row.usage.cached_prompt_tokens,
                    "cost_micros": row.cost_micros,
                    "currency": row.currency,
                }
                for row in rows
            ]
        )
        return
    if not rows:
        print("No requests in this time.")
        return
    console = Console()
    if plot:
        for line in bars.lines(rows, of, by, console.width):
            console.print(line, no_wrap=True, crop=False, highlight=False)
        return
    table = Table("Day", "Key", "Model", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Requests", "Failed", "Tokens in", "Out", "Cost"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = (row.requests, row.errors, row.usage.prompt_tokens, row.usage.completion_tokens)
        cost = f"{row.cost_micros / 1e6:,.4f} {row.currency}"
        table.add_row(
            row.day, escape(row.key_id), escape(row.model or bars.NO_MODEL), *(f"{n:,}" for n in counts), cost
        )
    console.print(table)
    if any(not row.model for row in rows):
        console.print(
            f"[dim]{bars.NO_MODEL}: answered without one, such as a summary, or ended before one was called.[/dim]"
        )


def export(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File, device or pipe to write. Without it, or -: the terminal."),
    ] = None,
    since: Annotated[str | None, typer.Option(help="From when: an age like 24h, or a date like 2026-11-21.")] = None,
    until: Annotated[str | None, typer.Option(help="Until when, exclusive; like --since.")] = None,
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Write every recorded question and answer of the key's tenant as JSON lines, oldest first.

    Example: `genaifactory export --since 7d --output week.jsonl`
    """
    now = datetime.now(UTC)
    start, end = windows.bounds(since, until, now)
    platform = endpoints.find(state_folder)
    if route:
        asyncio.run(monitoring.require_route(platform, key, route))

    async def write(file: BinaryIO) -> int:
        count = 0
        async with platform.connected(key) as channel:
            async for piece in monitoring.export(channel, start, end, route):
                file.write(piece.jsonl)
                count += piece.count
        file.flush()
        return count

    if output is None or str(output) == "-":
        asyncio.run(write(sys.stdout.buffer))
        return
    try:
        with files.output(output) as file:
            count = asyncio.run(write(file))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidArgument(
            f"{output} cannot be written: {error.strerror}. Give a file in a folder that you may write, or a device or "
            "pipe, or - for the terminal.",
            field="--output",
        ) from None
    print(f"{count} interactions in {output}", file=sys.stderr)  # stdout may be the output
