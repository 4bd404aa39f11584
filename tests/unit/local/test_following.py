"""Requests are followed as they end, each shown once, also across a restart of the monitor."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels, runtime, settings, specs, testing
from genaifactory_common.errors import Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_local.following import Follower, following
from genaifactory_monitor.app import create_app
from genaifactory_monitor.settings import Settings
from tests.unit.local.gateways import KEY, gateway

NOW = datetime.now(UTC)


class Reachable:
    """A platform with only the monitor and the gateway."""

    http_url = collector = ""

    def __init__(self, folder: Path) -> None:
        self.socket = f"unix:{folder}/monitor.sock"
        self.gateway = f"unix:{folder}/gateway.sock"

    def key(self) -> str:
        return KEY

    def connected(self, key: str | None, *, patience_seconds: float | None = None) -> grpc.aio.Channel:
        return channels.connect(self.gateway, patience_seconds=patience_seconds or 0, api_key=key or self.key())

    def factory(self) -> specs.Factory:
        raise NotImplementedError

    def tenant(self, key: str) -> str:
        raise NotImplementedError

    @asynccontextmanager
    async def monitor(self, folder: Path) -> AsyncIterator[None]:
        """The real monitor and gateway inside the block."""
        own = Settings(data_dir=folder, database_url=None, context_public_key=testing.SIGNER.public_key)
        server = settings.Server(address=self.socket, drain_seconds=0.1)
        async with (
            runtime.running(create_app(own, Telemetry("monitor")), server),
            channels.connect(self.socket) as to_monitor,
            gateway(monitor=to_monitor, address=self.gateway),
        ):
            yield

    async def record(self, request_id: str, began: datetime, *, seconds: float = 0.1, **fields: Any) -> None:
        start = Timestamp()
        start.FromDatetime(began)
        record = monitor_pb2.Interaction(
            request_id=request_id,
            tenant="acme",
            task="rag",
            start_time=start,
            duration_us=int(seconds * 1e6),
            outcome=monitor_pb2.OUTCOME_ANSWERED,
            **fields,
        )
        async with channels.connect(self.socket) as channel:
            stub = monitor_pb2_grpc.MonitorServiceStub(channel)
            await stub.RecordInteractions(monitor_pb2.RecordInteractionsRequest(interactions=[record]), timeout=10)


@pytest.fixture
def platform() -> Iterator[Reachable]:
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Reachable(Path(folder))


async def new(follower: Follower) -> list[str]:
    return [record.request_id for record in await follower.new()]


async def test_each_request_is_returned_once_in_the_order_of_its_end(platform: Reachable, tmp_path: Path) -> None:
    async with platform.monitor(tmp_path), following(lambda: platform, None, NOW - timedelta(minutes=10)) as follower:
        await platform.record("too-old", NOW - timedelta(minutes=20))
        await platform.record("long", NOW - timedelta(minutes=12), seconds=700)
        await platform.record("short", NOW - timedelta(minutes=5))
        assert await new(follower) == ["short", "long"]
        assert await new(follower) == []
        # It began before others that were shown, and ended after them.
        await platform.record("longer", NOW - timedelta(minutes=12), seconds=719)
        # Its record came late.
        await platform.record("late", NOW - timedelta(seconds=30), seconds=2)
        assert sorted(await new(follower)) == ["late", "longer"]
        assert await new(follower) == []


async def test_only_the_wanted_route_and_key_are_followed(platform: Reachable, tmp_path: Path) -> None:
    async with (
        platform.monitor(tmp_path),
        following(lambda: platform, None, NOW - timedelta(hours=1), route="rag", key_id="bob") as follower,
    ):
        await platform.record("a", NOW, route="rag", key_id="bob")
        await platform.record("b", NOW, route="chat", key_id="bob")
        await platform.record("c", NOW, route="rag", key_id="alice")
        assert await new(follower) == ["a"]


async def test_a_restart_of_the_platform_is_survived_without_showing_anything_twice(
    platform: Reachable, tmp_path: Path
) -> None:
    async with following(lambda: platform, None, NOW - timedelta(hours=1)) as follower:
        async with platform.monitor(tmp_path):
            await platform.record("before", NOW)
            assert await new(follower) == ["before"]
        for _ in range(2):
            with pytest.raises(Unavailable):
                await follower.new()
        async with platform.monitor(tmp_path):
            await platform.record("after", NOW)
            assert await new(follower) == ["after"]
