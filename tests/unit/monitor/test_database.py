"""The database: concurrent creation, file permissions, and clear errors."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.monitor.v1.monitor_pb2 import Interaction
from genaifactory_common import channels, runtime, testing
from genaifactory_common.database import Store as StoreSettings
from genaifactory_common.database import uninterrupted
from genaifactory_common.errors import Unavailable
from genaifactory_common.settings import Server
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.postgres import PostgresServer
from genaifactory_monitor import converters, store
from genaifactory_monitor.app import create_app
from genaifactory_monitor.database import FILE_NAME, Database
from genaifactory_monitor.records import Filter
from genaifactory_monitor.schema import metadata
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import NOON, Monitor, make_interaction, moment, opened, serving, settings_for

OPEN = """
import asyncio, sys
from genaifactory_monitor.database import Database
from genaifactory_monitor.settings import Settings

async def main():
    database = Database(Settings(data_dir=sys.argv[1], database_url=sys.argv[2] or None))
    print("ready", flush=True)
    sys.stdin.readline()
    await database.open()
    await database.close()

asyncio.run(main())
"""


def recorded(request_id: str, **fields: Any) -> Interaction:
    message = make_interaction(request_id, **fields)
    return converters.interaction(message, "interactions[0]", now_us=NOON * 10**6, max_bytes=10**7)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # polled, as the health reporter polls it
            await asyncio.sleep(0.01)


async def count(database: Database) -> int:
    found = await store.page(database, Filter("acme"), limit=500, max_bytes=10**9, newest_first=True)
    return len(found.interactions)


async def test_the_migrations_build_the_schema_that_the_code_uses(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_opening_a_database_again_keeps_what_it_holds(settings: Settings) -> None:
    for expected in (0, 1, 1):
        async with opened(settings) as database:
            assert await count(database) == expected
            await store.record(database, [recorded("a")])


@pytest.mark.slow
def test_processes_that_open_an_empty_database_at_once_all_succeed(settings: Settings) -> None:
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    arguments = [sys.executable, "-c", OPEN, str(settings.data_dir), url]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


async def test_only_the_monitors_account_may_read_the_database_files(sqlite_settings: Settings) -> None:
    async with opened(sqlite_settings) as database:
        await store.record(database, [recorded("a")])
        files = await asyncio.to_thread(lambda: list(sqlite_settings.data_dir.iterdir()))
        modes = await asyncio.to_thread(lambda: {path.name: stat.S_IMODE(path.stat().st_mode) for path in files})
    assert FILE_NAME in modes
    assert set(modes.values()) == {0o600}


async def test_a_database_locked_by_another_process_is_unavailable_and_then_works(tmp_path: Path) -> None:
    async with opened(settings_for(tmp_path, None, store=StoreSettings(busy_timeout_seconds=0.05))) as database:
        other = await asyncio.to_thread(
            sqlite3.connect, tmp_path / "monitor" / FILE_NAME, isolation_level=None, check_same_thread=False
        )
        await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")

        with pytest.raises(Unavailable, match="locked by another process") as refused:
            await store.record(database, [recorded("a")])
        assert refused.value.retry_after_seconds == 1.0

        await asyncio.to_thread(other.execute, "ROLLBACK")
        await asyncio.to_thread(other.close)
        assert len(await store.record(database, [recorded("a")])) == 1


async def test_a_full_disk_is_unavailable_and_what_was_acknowledged_stays(sqlite_settings: Settings) -> None:
    async with opened(sqlite_settings) as database:
        async with database.writing() as connection:  # SQLite fails as it does when the disk has no page left
            await connection.exec_driver_sql("PRAGMA max_page_count = 60")
        acknowledged = 0

        async def fill() -> None:
            nonlocal acknowledged
            while acknowledged < 60:
                await store.record(database, [recorded(f"r{acknowledged:04}", output="x" * 10_000)])
                acknowledged += 1

        with pytest.raises(Unavailable, match=r"The disk that holds .* is full\. Make room on it"):
            await fill()
        assert acknowledged > 0
        assert await count(database) == acknowledged
        async with database.writing() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        await store.record(database, [recorded("after")])
        assert await count(database) == acknowledged + 1


async def test_a_damaged_file_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "monitor"
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread((folder / FILE_NAME).write_bytes, os.urandom(8192))
    with pytest.raises(Unavailable, match="is damaged"):
        await Database(settings_for(tmp_path, None)).open()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "monitor").write_text, "a file")
    with pytest.raises(Unavailable, match=r"cannot write to its folder .*monitor"):
        await Database(settings_for(tmp_path, None)).open()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres:s3cret@127.0.0.1:1/monitor?ssl=disable",
        "postgresql://postgres:s3cret@/no_such_database?host={folder}",
        "postgresql://nobody:s3cret@/postgres?host={folder}",
    ],
)
async def test_postgresql_that_cannot_be_reached_is_unavailable_and_shows_no_password(
    url: str, tmp_path: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(settings_for(tmp_path, url.format(folder=postgres.folder)))
    with pytest.raises(Unavailable, match=r"database cannot be (reached|used)") as refused:
        await database.open()
    assert "s3cret" not in refused.value.message + caplog.text


async def test_the_monitor_works_again_after_postgresql_was_away(
    postgres_settings: Settings, postgres: PostgresServer
) -> None:
    async with opened(postgres_settings) as database:
        await store.record(database, [recorded("before")])
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(Unavailable):
                await store.record(database, [recorded("lost")])
            with pytest.raises(Unavailable):
                await store.ping(database)
        finally:
            await asyncio.to_thread(postgres.start)
        assert len(await store.record(database, [recorded("after")])) == 1
        assert await count(database) == 2


async def test_a_call_is_unavailable_when_every_connection_is_busy(tmp_path: Path) -> None:
    tight = StoreSettings(connections=1, busy_timeout_seconds=0.05)
    async with opened(settings_for(tmp_path, None, store=tight)) as database:
        async with database.writing():
            with pytest.raises(Unavailable, match="connections are busy"):
                await store.record(database, [recorded("a")])
        assert len(await store.record(database, [recorded("a")])) == 1


async def test_cancelled_calls_leak_no_connection_and_store_no_part_of_a_batch(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_up(batch: list[Interaction], turns: int) -> None:
        task = asyncio.create_task(store.record(database, batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    batches = [[recorded(f"b{k}-{i}") for i in range(5)] for k in range(40)]
    await asyncio.gather(*(hang_up(batch, turns=k) for k, batch in enumerate(batches)))

    assert await count(database) % 5 == 0
    again = [await store.record(database, batch) for batch in batches]
    assert {len(stored) for stored in again} <= {0, 5}
    assert await count(database) == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_failure_after_the_caller_was_cancelled_is_not_logged_as_never_retrieved() -> None:
    begun = asyncio.Event()

    @uninterrupted
    async def fail() -> None:
        begun.set()
        await asyncio.sleep(0)
        raise Unavailable("too late")

    task = asyncio.create_task(fail())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_monitor_whose_database_is_away_is_not_ready(
    postgres_settings: Settings, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genaifactory_monitor import app

    monkeypatch.setattr(app, "_PING_INTERVAL_SECONDS", 0.02)
    async with serving(postgres_settings) as monitor:
        assert monitor.app.ready()
        await asyncio.to_thread(postgres.stop)
        try:
            await until(lambda: not monitor.app.ready())
        finally:
            await asyncio.to_thread(postgres.start)
        await until(monitor.app.ready)


async def test_a_monitor_whose_database_is_away_at_its_start_is_not_ready_until_it_is_reachable(
    tmp_path: Path, postgres: PostgresServer, socket_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    server = Server(address=f"unix:{socket_folder}/m.sock", drain_seconds=0)
    app = create_app(settings_for(tmp_path, url), Telemetry("monitor"))
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(channels.connect(server.address))

        health: Any = health_pb2_grpc.HealthStub(channel)  # the package's types leave its methods out

        async def status() -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest())).status)

        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        request = monitor_pb2.RecordInteractionsRequest(interactions=[make_interaction("a")])
        async with postgres.away():
            opening = asyncio.create_task(stack.enter_async_context(runtime.running(app, server)))
            await channel.channel_ready()
            assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(Unavailable, match="database cannot be reached") as refused:
                await channels.unary(stub.RecordInteractions, request, timeout_seconds=5)
            assert refused.value.retry_after_seconds == 1.0
        async with asyncio.timeout(20):
            await opening
            while await status() == health_pb2.HealthCheckResponse.NOT_SERVING:  # noqa: ASYNC110  # each look is a call
                await asyncio.sleep(0.05)
        assert (await channels.unary(stub.RecordInteractions, request, timeout_seconds=5)).stored == 1
    failures = [each.message for each in caplog.records if each.message.startswith("The monitor's database fails")]
    assert len(failures) == len(set(failures)) > 0, "each way to fail is logged once"


async def test_a_monitor_that_waits_for_its_database_stops_on_request(
    tmp_path: Path, postgres: PostgresServer, socket_folder: Path
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    environment = {
        "PATH": os.environ["PATH"],
        "GENAIFACTORY_SERVER__ADDRESS": f"unix:{socket_folder}/m.sock",
        "GENAIFACTORY_DATA_DIR": str(tmp_path),
        "GENAIFACTORY_DATABASE_URL": url,
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(testing.SIGNER.public_key).decode(),
    }
    async with postgres.away(), asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "genaifactory_monitor", env=environment, stderr=asyncio.subprocess.PIPE
        )
        async with channels.connect(f"unix:{socket_folder}/m.sock") as channel:
            await channel.channel_ready()
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    assert "Traceback" not in log.decode()


async def test_nothing_acknowledged_is_lost_when_postgresql_dies_under_load(
    postgres_settings: Settings, postgres: PostgresServer
) -> None:
    acknowledged: set[str] = set()
    refused = asyncio.Event()
    stopping = asyncio.Event()

    async def enough() -> None:
        wanted = len(acknowledged) + 100
        await until(lambda: len(acknowledged) >= wanted)

    async def send_on(monitor: Monitor, sender: int) -> None:
        """A batch without a response is sent again, as the orchestrator's queue does."""
        for number in itertools.count():
            ids = [f"{sender}-{number}-{i}" for i in range(5)]
            while not acknowledged.issuperset(ids):
                try:
                    await monitor.record(*(make_interaction(i) for i in ids))
                    acknowledged.update(ids)
                except Unavailable:
                    refused.set()
                    await asyncio.sleep(0.02)
            if stopping.is_set():
                return

    testing.act_as()
    async with serving(postgres_settings) as monitor, asyncio.timeout(60):
        async with asyncio.TaskGroup() as group:
            for sender in range(6):
                group.create_task(send_on(monitor, sender))
            for _ in range(2):
                await enough()
                refused.clear()
                async with postgres.away():
                    await refused.wait()
            await enough()
            stopping.set()
        stored = [json.loads(line)["request_id"] for line in await monitor.export()]
        (usage,) = await monitor.usage(start_time=moment(-60), end_time=moment(60))
    assert sorted(stored) == sorted(acknowledged)
    assert usage.requests == len(stored)


async def test_what_is_acknowledged_is_flushed_to_the_disk(sqlite_settings: Settings) -> None:
    async with opened(sqlite_settings) as database, database.writing() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == 2  # FULL


async def test_a_database_is_closed_when_the_transactions_that_run_have_ended(settings: Settings) -> None:
    database = Database(settings)
    await database.open()
    begun, hold = asyncio.Event(), asyncio.Event()

    @uninterrupted
    async def work() -> None:
        async with database.writing() as connection:
            begun.set()
            await hold.wait()
            await connection.execute(sa.select(1))

    working = asyncio.create_task(work())
    await begun.wait()
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    with pytest.raises(Unavailable):
        await store.ping(database)  # nothing new begins
    hold.set()
    await asyncio.gather(working, closing)
