"""Progress of a step: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_LINE_INTERVAL_SECONDS = 10.0


class Report(Protocol):
    """Is called with how many are done so far."""

    def __call__(self, done: int, note: str = "") -> None:
        """note: what else there is to say at this moment ("loss 1.23")."""


class Progress:
    """Writes what a run does."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def line(self, text: str) -> None:
        """One line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def counting(self, what: str, total: int | None = None) -> Iterator[Report]:
        """Yields what is to be called. total: None where it is not known."""
        if self._console.is_terminal:
            with Bar(*_columns(), console=self._console) as bar:
                task = bar.add_task(what, total=total, note="")
                yield lambda done, note="": bar.update(task, completed=done, note=note)
            return
        started = written = self._clock()

        def report(done: int, note: str = "") -> None:
            nonlocal written
            if (now := self._clock()) - written >= _LINE_INTERVAL_SECONDS:
                written = now
                of = "" if total is None else f" of {total:,}"
                self.line(f"{what}: {done:,}{of} after {now - started:.0f} s" + (f", {note}" if note else ""))

        yield report


def _columns() -> list[ProgressColumn]:
    described, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    return [described, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note]
