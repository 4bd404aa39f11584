"""Bounds what an engine does at once: so many requests run, so many wait, interactive before batch, and so many are
one tenant's."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaifactory_common.engine_specs import Engine
from genaifactory_common.errors import Overloaded, RateLimited
from genaifactory_modelserver import metrics

_MAX_RETRY_AFTER_SECONDS = 30.0
_NEWEST_WEIGHT = 0.1


class Slots:
    """Places at one engine. Belongs to one event loop."""

    def __init__(self, engine: str, spec: Engine) -> None:
        """engine: its name, for the metrics. spec: how many may run, wait, and be of one tenant."""
        self._engine = engine
        self._max_running = spec.max_running
        self._max_queued = spec.max_queued
        self._max_per_tenant = spec.max_per_tenant
        self._of_tenant: Counter[str] = Counter()
        self._running = 0
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._mean_seconds = 0.1

    @asynccontextmanager
    async def place(self, priority: int, tenant: str) -> AsyncIterator[None]:
        """Holds a place inside the block; smaller priorities get theirs first, equal ones in order of arrival.

        Raises RateLimited when the tenant has as many as it may, Overloaded when as many wait as may; both with an
        estimate of when to retry.
        """
        if self._max_per_tenant is not None and self._of_tenant[tenant] >= self._max_per_tenant:
            metrics.REFUSED.labels(self._engine, "tenant").inc()
            raise RateLimited(
                f"The tenant has {self._max_per_tenant} requests at the engine '{self._engine}', as many as it may.",
                retry_after_seconds=min(max(1.0, self._mean_seconds), _MAX_RETRY_AFTER_SECONDS),
            )
        self._of_tenant[tenant] += 1
        try:
            async with self._place(priority):
                yield
        finally:
            self._of_tenant[tenant] -= 1
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]

    @asynccontextmanager
    async def _place(self, priority: int) -> AsyncIterator[None]:
        arrived = time.perf_counter()
        if self._running < self._max_running:
            self._running += 1
        elif len(self._queue) < self._max_queued:
            await self._wait(priority)
        else:
            metrics.REFUSED.labels(self._engine, "full").inc()
            raise Overloaded(
                f"The engine '{self._engine}' is full: {self._running} requests run and {len(self._queue)} wait.",
                retry_after_seconds=self._retry_after_seconds(),
            )
        started = time.perf_counter()
        metrics.QUEUE_SECONDS.labels(self._engine).observe(started - arrived)
        metrics.RUNNING.labels(self._engine).inc()
        try:
            yield
        finally:
            metrics.RUNNING.labels(self._engine).dec()
            self._mean_seconds += _NEWEST_WEIGHT * (time.perf_counter() - started - self._mean_seconds)
            self._release()

    async def _wait(self, priority: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._order), future)
        heapq.heappush(self._queue, entry)
        metrics.QUEUED.labels(self._engine).inc()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self._release()  # the place came in the moment in which its owner left
            elif entry in self._queue:
                self._queue.remove(entry)
                heapq.heapify(self._queue)
            raise
        finally:
            metrics.QUEUED.labels(self._engine).dec()

    def _release(self) -> None:
        while self._queue:
            _, _, future = heapq.heappop(self._queue)
            if not future.done():  # done: its owner is being cancelled
                future.set_result(None)  # the place passes on; as many run as before
                return
        self._running -= 1

    def _retry_after_seconds(self) -> float:
        rounds = (len(self._queue) + 1) / self._max_running
        return min(max(1.0, rounds * self._mean_seconds), _MAX_RETRY_AFTER_SECONDS)
