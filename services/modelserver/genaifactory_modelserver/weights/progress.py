"""How far a download is, reported at most once a second."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that are here, of how many; `total_bytes` is 0 while unknown. `file`: the one that grew last."""

    done_bytes: int
    total_bytes: int
    file: str


Report = Callable[[Progress], None]
"""Called in the event loop."""


class Meter:
    """Counts bytes, from any thread. Made in the event loop in which `report` is to be called."""

    def __init__(self, report: Report, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._told = -_EVERY_SECONDS
        self._done = 0
        self._total = 0
        self._file = ""

    def expect(self, total_bytes: int) -> None:
        """Says how many there will be."""
        with self._lock:
            self._total = total_bytes

    def add(self, count: int, file: str) -> None:
        """Counts bytes of a file; negative ones when it has to be read again."""
        with self._lock:
            self._done += count
            self._file = file
            now = self._clock()
            if now - self._told < _EVERY_SECONDS:
                return
            self._told = now
            progress = self._progress()
        self._loop.call_soon_threadsafe(self._report, progress)

    async def finish(self) -> None:
        """Reports the last state, after everything that was reported before."""
        await asyncio.sleep(0)
        self._report(self._progress())

    def _progress(self) -> Progress:
        return Progress(self._done, max(self._total, self._done) if self._total else 0, self._file)
