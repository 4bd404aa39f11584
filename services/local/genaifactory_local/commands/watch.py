"""`genaifactory watch`: requests as they end."""

from __future__ import annotations

import asyncio
import json
import logging
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError
from genaifactory_local import endpoints, following, monitoring, state, watch_page
from genaifactory_local.commands.options import JsonOption, StateOption
from genaifactory_pipelines import windows

_INTERVAL_SECONDS = 1.0
_TERMINATED = 128 + signal.SIGTERM

_Show = Callable[[Sequence[monitor_pb2.Interaction]], None]
_Warn = Callable[[str], None]


def watch(
    since: Annotated[str, typer.Option(help="Show what ended since then: an age like 10m, or a time.")] = "10m",
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    key: Annotated[str, typer.Option("--key", help="Only this API key: its id in factory.yaml, not the key.")] = "",
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="GENAIFACTORY_API_KEY",
            help="API key, which decides the tenant. Without it: the key of the platform on --state.",
        ),
    ] = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show requests as they end: key, route, tokens, time, cost, what was blocked and why. Ctrl-C ends it.

    It goes on when the platform restarts. In a pipe, or with --json, every request is a line.

    Example: `genaifactory watch --since 1h`
    """
    start = windows.moment(since, datetime.now(UTC), "--since")
    platform = endpoints.find(state_folder)  # once here, so that a wrong option ends the command and is not tried again
    api_key = api_key or platform.key()
    whose = platform.tenant(api_key)
    if route:
        asyncio.run(monitoring.require_route(platform, api_key, route))
    logging.getLogger().addHandler(logging.NullHandler())  # errors are shown on the page, or once on stderr
    follow = following.following(lambda: endpoints.find(state_folder), api_key, start, route=route, key_id=key)
    console = Console()
    try:
        if as_json or not console.is_terminal:
            printer = _Lines(as_json)
            asyncio.run(_follow(follow, printer.show, printer.warn))
            return
        title = "  ".join(filter(None, (whose and f"tenant {whose}", route and f"route {route}", key and f"key {key}")))
        page = watch_page.Page(title, lambda: datetime.now(UTC))
        with Live(page, console=console, screen=True, auto_refresh=False) as live:

            def show(records: Sequence[monitor_pb2.Interaction]) -> None:
                page.add(records)
                page.trouble = ""
                live.refresh()

            def warn(trouble: str) -> None:
                page.trouble = trouble
                live.refresh()

            asyncio.run(_follow(follow, show, warn))
    except KeyboardInterrupt:
        pass  # Ctrl-C ends the command


async def _follow(follow: AbstractAsyncContextManager[following.Follower], show: _Show, warn: _Warn) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)  # as Ctrl-C does, so that the terminal is restored
    try:
        async with follow as follower:
            while True:
                before = loop.time()
                try:
                    show(await follower.new())
                except FactoryError as error:
                    warn(f"Nothing new can be read; trying again. {error.message}")
                # A slow monitor is polled less often.
                await asyncio.sleep(max(_INTERVAL_SECONDS, 4 * (loop.time() - before)))
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(_TERMINATED) from None
        raise


class _Lines:
    """Prints each request on a line of its own; on stderr, that the platform cannot be reached."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._away = False
        self._reader = select.poll()
        self._reader.register(sys.stdout, 0)

    def show(self, records: Sequence[monitor_pb2.Interaction]) -> None:
        """Prints new requests. Raises BrokenPipeError when the output was closed, also when there are none."""
        if any(event & select.POLLERR for _, event in self._reader.poll(0)):
            raise BrokenPipeError
        self._away = False
        for record in records:
            if self._as_json:
                print(json.dumps(watch_page.plain(record), ensure_ascii=False))
            else:
                print(watch_page.line(record))
        sys.stdout.flush()

    def warn(self, trouble: str) -> None:
        """Prints the trouble, once until requests are read again."""
        if not self._away:
            print(f"genaifactory: {trouble}", file=sys.stderr, flush=True)
        self._away = True
