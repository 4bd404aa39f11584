"""The gateway's readiness."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from genaifactory_common import channels, runtime, settings, testing
from genaifactory_common.space import Space, Volume
from genaifactory_common.testing.orchestrator import FakeOrchestrator
from genaifactory_gateway.health import Health
from genaifactory_gateway.upstream import Channels


async def test_a_ready_gateway_stays_ready_while_the_orchestrator_restarts(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/o"
    app = FakeOrchestrator().app(testing.VERIFIER)
    async with AsyncExitStack() as running, channels.connect(address) as channel:
        await running.enter_async_context(runtime.running(app, settings.Server(address=address, drain_seconds=0.1)))
        health = Health(
            Channels(orchestrator=channel, monitor=channel, retriever=channel, safety=channel), timeout_seconds=1
        )
        before = health.ready
        assert (await health.check())["orchestrator"] == "serving"
        assert (before, health.ready) == (False, True)
        await running.aclose()
        await asyncio.sleep(1.1)  # a check is reused for a second
        assert (await health.check())["orchestrator"] == "unreachable"
        assert health.ready


async def test_a_health_check_does_not_wait_for_an_unreachable_service() -> None:
    async with (
        asyncio.timeout(5),
        channels.connect("dns:///127.0.0.1:1", patience_seconds=60) as orchestrator,
        channels.connect("unix:/nonexistent/m", patience_seconds=60) as monitor,
    ):
        health = Health(
            Channels(orchestrator=orchestrator, monitor=monitor, retriever=monitor, safety=monitor), timeout_seconds=1
        )
        assert await health.check() == {"orchestrator": "unreachable", "monitor": "unreachable"}
        assert not health.ready


@pytest.mark.parametrize(
    ("free", "state", "can_answer"),
    [(500 << 20, "serving", True), (100 << 20, "serving, low on space", True), (1 << 20, "out of space", False)],
)
async def test_a_full_disk_of_an_upstream_is_reported_and_the_gateway_stays_ready(
    tmp_path: Path, free: int, state: str, can_answer: bool
) -> None:
    address = f"unix:{tmp_path}/o"
    space = Space("orchestrator", tmp_path, settings.Space(), read=lambda _: Volume(free, 1 << 40))
    app = dataclasses.replace(FakeOrchestrator().app(testing.VERIFIER), space=space)
    server = settings.Server(address=address, drain_seconds=0.1)
    async with runtime.running(app, server), channels.connect(address) as channel:
        health = Health(
            Channels(orchestrator=channel, monitor=channel, retriever=channel, safety=channel), timeout_seconds=1
        )
        assert await health.check() == {"orchestrator": state, "monitor": state}
        assert health.can_answer is can_answer
        assert health.ready, "clients must get the reason"
