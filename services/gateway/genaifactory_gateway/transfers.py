"""Bounds how many uploads and exports run at once: each holds some MiB and a call to a service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from genaifactory_common.errors import Overloaded
from genaifactory_gateway.settings import Transfers as Settings

_RETRY_AFTER_SECONDS = 5.0


class Transfers:
    """Counts running transfers, of all tenants and of each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: Counter[str] = Counter()

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Counts a transfer inside the block. Raises Overloaded."""
        most = self.settings.max_concurrent_per_tenant
        if self._running[tenant] >= most:
            raise _full(f"This tenant runs {most} uploads and exports, the most at once; try again when one has ended.")
        if self._running.total() >= self.settings.max_concurrent:
            raise _full("The gateway runs as many uploads and exports as it can; try again.")
        self._running[tenant] += 1
        try:
            yield
        finally:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]


def _full(message: str) -> Overloaded:
    return Overloaded(message, retry_after_seconds=_RETRY_AFTER_SECONDS)
