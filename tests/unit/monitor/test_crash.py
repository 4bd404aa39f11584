"""Every record that the monitor acknowledged is stored after a kill -9, once, and in the sums."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels, testing
from genaifactory_common.errors import FactoryError
from genaifactory_monitor import store, usage
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import Filter, Position
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import NOON, make_interaction, opened

ROUNDS = 4


def start(settings: Settings, address: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "GENAIFACTORY_SERVER__ADDRESS": address,
        "GENAIFACTORY_DATA_DIR": str(settings.data_dir),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(testing.SIGNER.public_key).decode(),
    }
    if settings.database_url is not None:
        environment["GENAIFACTORY_DATABASE_URL"] = settings.database_url.get_secret_value()
    return subprocess.Popen([sys.executable, "-m", "genaifactory_monitor"], env=environment, stderr=subprocess.DEVNULL)


async def send_until_it_dies(address: str, prefix: str, acknowledged: set[str], enough: asyncio.Event) -> None:
    """One sender; a batch without a response is sent again, as the orchestrator's queue does."""
    async with channels.connect(address) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        for number in range(10_000):
            ids = [f"{prefix}-{number}-{i}" for i in range(5)]
            request = monitor_pb2.RecordInteractionsRequest(interactions=[make_interaction(i) for i in ids])
            try:
                await channels.unary(stub.RecordInteractions, request, timeout_seconds=10)
            except FactoryError:
                return
            acknowledged.update(ids)
            if number == 5:
                enough.set()


async def stored_ids(database: Database) -> list[str]:
    found: list[str] = []
    after: Position | None = None
    while True:
        page = await store.page(database, Filter("acme"), after=after, limit=500, max_bytes=10**9, newest_first=False)
        found += [item.request_id for item in page.interactions]
        if page.next is None:
            return found
        after = page.next


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_or_doubled_when_the_process_is_killed(settings: Settings) -> None:
    chance = random.Random(11)
    acknowledged: set[str] = set()
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="gf-")
    for turn in range(ROUNDS):
        enough = asyncio.Event()
        address = f"unix:{Path(folder) / f'{turn}.sock'}"
        process = await asyncio.to_thread(start, settings, address)
        try:
            before = len(acknowledged)
            async with channels.connect(address) as channel, asyncio.timeout(30):
                await channel.channel_ready()
            async with asyncio.TaskGroup() as group:
                for sender in range(3):
                    group.create_task(send_until_it_dies(address, f"{turn}-{sender}", acknowledged, enough))
                async with asyncio.timeout(30):
                    await enough.wait()
                await asyncio.sleep(chance.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
        assert len(acknowledged) >= before + 30

    async with opened(settings) as database:
        found = await stored_ids(database)
        rows = await usage.between(database, "acme", NOON * 10**6, (NOON + 60) * 10**6, now_us=NOON * 10**6)
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))
    assert sum(sums.requests for _, sums in rows) == len(found)
    # A batch is stored whole or not at all.
    assert len(found) % 5 == 0
