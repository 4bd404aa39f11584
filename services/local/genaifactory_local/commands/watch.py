"""`genaifactory watch`: requests as they come."""

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

_INTERVAL_SECONDS = 1.0
_TERMINATED = 128 + signal.SIGTERM

_Show = Callable[[Sequence[monitor_pb2.Interaction]], None]
_Complain = Callable[[str], None]


def watch(
    since: Annotated[str, typer.Option(help="Begin with what ended since: an age like 10m, or a time.")] = "10m",
    route: Annotated[str, typer.Option(help="Only this route.")] = "",
    key: Annotated[str, typer.Option("--key", help="Only this API key: its id in factory.yaml, not the key.")] = "",
    shown_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="GENAIFACTORY_API_KEY",
            help="API key to show, which says for which tenant. Without it: the key of the platform on --state.",
        ),
    ] = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show requests as they end: who, what, how long, at what cost, what was blocked and why. Ctrl-C ends it.

    It goes on when the platform restarts. In a pipe, or with --json, every request is a line.

    Example: `genaifactory watch --since 1h`
    """
    start = monitoring.moment(since, datetime.now(UTC), "--since")
    platform = endpoints.find(state_folder)  # once, so that a mistake ends the command instead of being tried again
    shown_key = shown_key or platform.key()
    whose = platform.tenant(shown_key)
    if route:
        asyncio.run(monitoring.require_route(platform, shown_key, route))
    logging.getLogger().addHandler(logging.NullHandler())  # what goes wrong is shown, on the page or once
    follow = following.following(lambda: endpoints.find(state_folder), shown_key, start, route=route, key_id=key)
    console = Console()
    try:
        if as_json or not console.is_terminal:
            printer = _Lines(as_json)
            asyncio.run(_follow(follow, printer.show, printer.complain))
            return
        title = "  ".join(filter(None, (whose and f"tenant {whose}", route and f"route {route}", key and f"key {key}")))
        page = watch_page.Page(title, lambda: datetime.now(UTC))
        with Live(page, console=console, screen=True, auto_refresh=False) as live:

            def show(records: Sequence[monitor_pb2.Interaction]) -> None:
                page.add(records)
                page.trouble = ""
                live.refresh()

            def complain(trouble: str) -> None:
                page.trouble = trouble
                live.refresh()

            asyncio.run(_follow(follow, show, complain))
    except KeyboardInterrupt:
        pass  # the way to end it


async def _follow(follow: AbstractAsyncContextManager[following.Follower], show: _Show, complain: _Complain) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)  # the terminal is put back as it was
    try:
        async with follow as follower:
            while True:
                before = loop.time()
                try:
                    show(await follower.new())
                except FactoryError as error:
                    complain(f"Nothing new can be read; this goes on by itself when it can. {error.message}")
                # A monitor that is slow is asked less often.
                await asyncio.sleep(max(_INTERVAL_SECONDS, 4 * (loop.time() - before)))
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(_TERMINATED) from None
        raise


class _Lines:
    """Prints each request on a line of its own, and on stderr when the platform goes."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._away = False
        self._reader = select.poll()
        self._reader.register(sys.stdout, 0)

    def show(self, records: Sequence[monitor_pb2.Interaction]) -> None:
        """Prints new requests. Raises BrokenPipeError when nobody reads them any more, also when there are none."""
        if any(event & select.POLLERR for _, event in self._reader.poll(0)):
            raise BrokenPipeError
        self._away = False
        for record in records:
            if self._as_json:
                print(json.dumps(watch_page.plain(record), ensure_ascii=False))
            else:
                print(watch_page.line(record))
        sys.stdout.flush()

    def complain(self, trouble: str) -> None:
        """Once for each time that the platform is away."""
        if not self._away:
            print(f"genaifactory: {trouble}", file=sys.stderr, flush=True)
        self._away = True
