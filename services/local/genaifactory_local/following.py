"""Follows what is recorded: each request once, in the order in which they end, across restarts of the platform."""

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

# A record comes a moment after its answer's end, and the clocks of a cluster's pods differ a little.
_OVERLAP = timedelta(seconds=30)
_SEEN = 20_000
_MOST_AT_ONCE = 2_000


class Follower:
    """Asks again and again for what has ended since the newest record that it has seen."""

    def __init__(
        self,
        find: Callable[[], Platform],
        key: str | None,
        since: datetime,
        *,
        route: str = "",
        key_id: str = "",
    ) -> None:
        """find: the platform as it runs now. key: what is shown to it; None: its own. since: from when on requests must
        have ended to be shown.
        """
        self._find = find
        self._key = key
        self._since = self._newest = since
        self._filter = monitor_pb2.InteractionFilter(route=route, key_id=key_id)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._connection = AsyncExitStack()
        self._channel: grpc.aio.Channel | None = None

    async def new(self) -> list[monitor_pb2.Interaction]:
        """What has ended since the last call, oldest first; of very many the newest.

        Raises FactoryError when the platform cannot be asked; the next call tries to reach it anew.
        """
        try:
            return await self._ask()
        except FactoryError:
            await self.close()
            raise

    async def close(self) -> None:
        """Lets go of the connection."""
        self._channel = None
        await self._connection.aclose()

    async def _ask(self) -> list[monitor_pb2.Interaction]:
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
    """A Follower that lets go of its connection at the end."""
    follower = Follower(find, key, since, route=route, key_id=key_id)
    try:
        yield follower
    finally:
        await follower.close()


def ended(record: monitor_pb2.Interaction) -> datetime:
    """When a request came to its end."""
    return record.start_time.ToDatetime(UTC) + timedelta(microseconds=record.duration_us)
