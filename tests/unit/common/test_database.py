"""Services that share a PostgreSQL database do not interfere with each other."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from genaifactory_common.database import Database, Layout, Store
from genaifactory_common.errors import Unavailable
from genaifactory_common.testing.postgres import PostgresServer, postgres_server
from genaifactory_monitor.database import Database as MonitorDatabase
from genaifactory_monitor.schema import metadata as of_monitor
from genaifactory_monitor.settings import Settings as MonitorSettings
from genaifactory_orchestrator.settings import Settings as OrchestratorSettings
from genaifactory_orchestrator.stores.conversations import Conversations
from genaifactory_orchestrator.stores.conversations_schema import metadata as of_orchestrator


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; skips where none is installed."""
    with postgres_server() as server:
        yield server


async def test_replicas_of_two_services_migrate_an_empty_database_concurrently(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    monitor = MonitorSettings.model_validate({"data_dir": tmp_path, "database_url": url})
    orchestrator = OrchestratorSettings.model_validate({"data_dir": tmp_path, "database_url": url})
    for _ in range(2):  # the second time nothing is left to do
        stores: list[MonitorDatabase | Conversations] = [
            opened for _ in range(4) for opened in (MonitorDatabase(monitor), Conversations(orchestrator))
        ]
        await asyncio.gather(*(store.open() for store in stores))
        for store in stores:
            await store.close()

    database = MonitorDatabase(monitor)
    await database.open()
    async with database.reading() as connection:
        tables = set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))
        versions = [
            await connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))
            for table in ("alembic_version", "orchestrator_alembic_version")
        ]
    await database.close()
    expected = [*of_monitor.tables, *of_orchestrator.tables, "alembic_version", "orchestrator_alembic_version"]
    assert sorted(tables) == sorted(expected), "no table is shared"
    assert versions == [1, 1]


@pytest.mark.parametrize("on_postgresql", [True, False])
async def test_an_error_of_a_statement_does_not_hold_what_was_to_be_stored(
    tmp_path: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture, on_postgresql: bool
) -> None:
    url = await asyncio.to_thread(postgres.new_database) if on_postgresql else None
    database = MonitorDatabase(MonitorSettings.model_validate({"data_dir": tmp_path, "database_url": url}))
    await database.open()
    question = "a private question"
    with pytest.raises((sa.exc.DBAPIError, Unavailable)) as failed:
        async with database.writing() as connection:
            await connection.execute(sa.text("INSERT INTO nowhere VALUES (:text)"), {"text": question})
    await database.close()
    shown = "".join(traceback.format_exception(failed.value))
    assert "nowhere" in shown
    assert question not in shown + caplog.text


@pytest.mark.parametrize("on_postgresql", [True, False])
async def test_an_older_version_works_on_a_database_that_a_newer_one_has_migrated(
    tmp_path: Path, postgres: PostgresServer, on_postgresql: bool
) -> None:
    url = await asyncio.to_thread(postgres.new_database) if on_postgresql else None
    settings = MonitorSettings.model_validate({"data_dir": tmp_path, "database_url": url})
    database = MonitorDatabase(settings)
    await database.open()
    async with database.writing() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    for _ in range(2):
        database = MonitorDatabase(settings)
        await database.open()
        async with database.reading() as connection:
            assert await connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"
            assert await connection.scalar(sa.text("SELECT count(*) FROM interactions")) == 0
        await database.close()


async def test_a_database_that_was_never_opened_is_unavailable_and_can_be_closed(tmp_path: Path) -> None:
    layout = Layout("any", "The database", "any.db", "all", tmp_path, version_table="alembic_version", migration_lock=1)
    database = Database(layout, data_dir=tmp_path, url=None, store=Store())
    for use in (database.reading, database.writing):
        with pytest.raises(Unavailable, match=r"The database cannot be reached\."):
            await use().__aenter__()
    with pytest.raises(Unavailable):
        await database.truncate_log()
    await database.close()


async def test_a_role_without_the_privilege_to_create_tables_is_unavailable_until_it_is_granted(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    admin = MonitorDatabase(MonitorSettings.model_validate({"database_url": url}))
    limited = MonitorDatabase(
        MonitorSettings.model_validate({"database_url": url.replace("postgres:unused", "limited:unused")})
    )
    await admin.open()
    async with admin.writing() as connection:
        for table in (*of_monitor.tables, "alembic_version"):
            await connection.execute(sa.text(f"DROP TABLE {table}"))
        await connection.execute(sa.text("CREATE ROLE limited LOGIN"))
    with pytest.raises(Unavailable, match="cannot be used now"):
        await limited.open()
    async with admin.writing() as connection:
        await connection.execute(sa.text("GRANT CREATE ON SCHEMA public TO limited"))
    await limited.open_when_reachable()
    for database in (admin, limited):
        await database.close()
