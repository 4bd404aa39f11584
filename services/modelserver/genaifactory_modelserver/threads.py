"""Blocking work in threads that ends when its task is cancelled, so that nothing is still written afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from genaifactory_common import background

T = TypeVar("T")


class Stopped(Exception):
    """The task that wants the work was cancelled. Only `run` sees it."""


class Stop:
    """Tells work in a thread that nobody wants it any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Asks the work to stop."""
        self._event.set()

    def check(self) -> None:
        """Raises Stopped once the work is to stop. Called between pieces of at most a few megabytes."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Waits; raises Stopped as soon as the work is to stop."""
        if self._event.wait(seconds):
            raise Stopped


async def run(work: Callable[[Stop], T]) -> T:
    """Runs `work` in a thread. When cancelled it signals the work to stop, and returns only when it has."""
    stop = Stop()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    return await background.to_the_end(future, cancelled=stop.set)
