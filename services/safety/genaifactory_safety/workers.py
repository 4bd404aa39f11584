"""Runs scans off the event loop, within bounds of number and time; beyond them they are refused, never skipped."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from genaifactory_common.errors import Overloaded, Unavailable
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.settings import Scan

PIECE_CHARACTERS = 16_384
"""A longer text is scanned in pieces of this length, so that calls alternate."""


class Workers:
    """The scan threads of the service."""

    def __init__(self, settings: Scan) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="safety-scan")
        self._unfinished = 0

    def admit(self) -> None:
        """Raises Overloaded when the queue for the threads is full."""
        if self._unfinished >= self._settings.threads + self._settings.max_queued:
            raise Overloaded("The guardrails have too much to scan; try again soon.", retry_after_seconds=1.0)

    async def push(self, scanner: StreamScanner, text: str) -> str:
        """scanner.push, a long text in pieces. Raises Unavailable when it runs out of time."""
        pieces = [text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS)]
        return "".join(
            [await self._run(functools.partial(scanner.push, piece), len(piece) + scanner.held) for piece in pieces]
        )

    async def finish(self, scanner: StreamScanner) -> str:
        """scanner.finish. Raises Unavailable when it runs out of time."""
        return await self._run(scanner.finish, scanner.held)

    def close(self) -> None:
        """Starts no more scans, and does not wait for one that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, step: Callable[[], str], characters: int) -> str:
        if characters <= self._settings.inline_characters:
            return step()
        future = self._threads.submit(step)
        self._unfinished += 1
        loop = asyncio.get_running_loop()
        # Counted until the thread has ended it: a scan that hangs occupies its thread also after the timeout.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished) if not loop.is_closed() else None)
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Unavailable("The text could not be scanned in time; it must not be used.") from None

    def _finished(self) -> None:
        self._unfinished -= 1
