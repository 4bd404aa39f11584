"""Runs scans off the event loop, so many at once and so long; what does not fit is refused, never skipped."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from genaifactory_common.errors import Overloaded, Unavailable
from genaifactory_safety.scanner import StreamScanner
from genaifactory_safety.settings import Scan

PIECE_CHARACTERS = 16_384
"""A longer text is scanned in pieces of this length, so that calls take turns."""


class Workers:
    """The threads of one service."""

    def __init__(self, settings: Scan) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="safety-scan")
        self._unfinished = 0

    def admit(self) -> None:
        """Raises Overloaded when a new call would have to wait behind too many."""
        if self._unfinished >= self._settings.threads + self._settings.max_queued:
            raise Overloaded("The guardrails have too much to scan; try again soon.", retry_after_seconds=1.0)

    async def push(self, scanner: StreamScanner, text: str) -> str:
        """scanner.push, a long text in pieces. Raises Unavailable when it takes too long."""
        pieces = [text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS)]
        return "".join(
            [await self._run(functools.partial(scanner.push, piece), len(piece) + scanner.held) for piece in pieces]
        )

    async def finish(self, scanner: StreamScanner) -> str:
        """scanner.finish. Raises Unavailable when it takes too long."""
        return await self._run(scanner.finish, scanner.held)

    def close(self) -> None:
        """Starts nothing more; a scan that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, step: Callable[[], str], characters: int) -> str:
        if characters <= self._settings.inline_characters:
            return step()
        future = self._threads.submit(step)
        self._unfinished += 1
        loop = asyncio.get_running_loop()
        # Counted until the thread is done with it: a scan that hangs holds its thread, whoever still waits.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished) if not loop.is_closed() else None)
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Unavailable("The text could not be scanned in time; it must not be used.") from None

    def _finished(self) -> None:
        self._unfinished -= 1
