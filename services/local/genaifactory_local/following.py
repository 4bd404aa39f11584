"""Follows recorded requests: each once, in the order in which they end, across restarts of the platform."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import grpc.aio

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.errors import FactoryError
from genaifactory_local import monitoring
from genaifactory_local.endpoints import Platform

# A record is stored a moment after its answer's end, and the clocks of a cluster's pods differ a little.
_OVERLAP = timedelta(seconds=30)
_SEEN = 20_000
_MOST_AT_ONCE = 2_000


class Follower:
    """Polls for requests that have ended since the newest one that it has returned."""

    def __init__(
        self,
        find: Callable[[], Platform],
        key: str | None,
        since: datetime,
        *,
        route: str = "",
        key_id: str = "",
    ) -> None:
        """find: returns the platform that runs now. key: API key; None: the platform's own. since: requests that ended
        before are left out.
        """
        self._find = find
        self._key = key
        self._since = self._newest = since
        self._filter = monitor_pb2.InteractionFilter(route=route, key_id=key_id)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._connection = AsyncExitStack()
        self._channel: grpc.aio.Channel | None = None

    async def new(self) -> list[monitor_pb2.Interaction]:
        """Requests that have ended since the last call, oldest first; of very many the newest.

        Raises FactoryError when the platform cannot be reached; the next call connects again.
        """
        try:
            return await self._poll()
        except FactoryError:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes the connection."""
        self._channel = None
        await self._connection.aclose()

    async def _poll(self) -> list[monitor_pb2.Interaction]:
        channel = self._channel or await self._connect()
        wanted = monitor_pb2.InteractionFilter()
        wanted.CopyFrom(self._filter)
        wanted.ended_since.FromDatetime(max(self._since, self._newest - _OVERLAP))
        found = [item async for item in monitoring.interactions(channel, wanted, most=_MOST_AT_ONCE)]
        new = sorted((item for item in found if item.request_id not in self._seen), key=ended)
        for item in new:
            self._seen[item.request_id] = None
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        if new:
            self._newest = max(self._newest, ended(new[-1]))
        return new

    async def _connect(self) -> grpc.aio.Channel:
        connected = self._find().connected(self._key, patience_seconds=0)
        self._channel = await self._connection.enter_async_context(connected)
        return self._channel


@asynccontextmanager
async def following(
    find: Callable[[], Platform], key: str | None, since: datetime, *, route: str = "", key_id: str = ""
) -> AsyncIterator[Follower]:
    """A Follower whose connection is closed at the end of the block."""
    follower = Follower(find, key, since, route=route, key_id=key_id)
    try:
        yield follower
    finally:
        await follower.close()


def ended(record: monitor_pb2.Interaction) -> datetime:
    """When a request ended."""
    return record.start_time.ToDatetime(UTC) + timedelta(microseconds=record.duration_us)
