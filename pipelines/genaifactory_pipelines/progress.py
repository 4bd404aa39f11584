"""Progress of a step: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """Writes what a run does."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def line(self, text: str) -> None:
        """One line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def counting(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Yields a function that is called with how many are done so far. total: None where it is not known."""
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Bar(*columns, console=self._console) as bar:
                task = bar.add_task(what, total=total)
                yield lambda done: bar.update(task, completed=done)
            return
        started = written = self._clock()

        def report(done: int) -> None:
            nonlocal written
            if (now := self._clock()) - written >= _LINE_INTERVAL_SECONDS:
                written = now
                of = "" if total is None else f" of {total:,}"
                self.line(f"{what}: {done:,}{of} after {now - started:.0f} s")

        yield report
