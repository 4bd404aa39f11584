"""Progress of running uploads, so that an answer from a part of the documents can be marked as such."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# An upload of many documents is several calls; within this pause it counts as running.
_BETWEEN_CALLS_SECONDS = 5.0

Key = tuple[str, str]
"""Knowledge base and tenant."""


@dataclass(frozen=True)
class Announced:
    """The size that an upload declares."""

    total: int
    """Documents of the whole upload; 0: not known."""
    before: int = 0
    """Of these, how many were done before the call."""
    continues: bool = False
    """Whether another call of the upload follows."""


@dataclass(frozen=True)
class Reading:
    """Progress of the uploads into a knowledge base."""

    done: int
    """Documents that have a result."""
    total: int


@dataclass(eq=False)
class Call:
    """One Ingest call. Its handler counts `done` up."""

    announced: Announced
    done: int = 0
    ended: float | None = None
    """Time of the clock; None while the call runs."""

    @property
    def sent(self) -> int:
        """Documents of the upload that have a result."""
        return self.announced.before + self.done


@dataclass
class Uploads:
    """The running uploads. For one event loop."""

    clock: Callable[[], float] = time.monotonic
    _calls: dict[Key, list[Call]] = field(default_factory=dict)

    @contextmanager
    def call(self, key: Key, announced: Announced) -> Iterator[Call]:
        """Registers an Ingest call until it ends, or until the next call of its upload begins."""
        call = Call(announced)
        running = [other for other in self._calls.get(key, ()) if other.ended is None]
        self._calls[key] = [*running, call]
        try:
            yield call
        finally:
            call.ended = self.clock()
            if not announced.continues:
                self._forget(key, call)

    def reading(self, key: Key) -> Reading | None:
        """Progress of the uploads that declared their size; None when none is running."""
        now = self.clock()
        for call in tuple(self._calls.get(key, ())):
            if call.ended is not None and now - call.ended > _BETWEEN_CALLS_SECONDS:
                self._forget(key, call)
        unfinished = [call for call in self._calls.get(key, ()) if call.sent < call.announced.total]
        if not unfinished:
            return None
        return Reading(sum(call.sent for call in unfinished), sum(call.announced.total for call in unfinished))

    def _forget(self, key: Key, call: Call) -> None:
        calls = self._calls.get(key, [])
        if call in calls:
            calls.remove(call)
        if not calls:
            self._calls.pop(key, None)
