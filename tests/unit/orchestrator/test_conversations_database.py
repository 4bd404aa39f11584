"""The database of conversations: migrations, files of a former version, and reconnection."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import Unavailable
from genaifactory_common.testing.postgres import PostgresServer
from genaifactory_orchestrator.settings import Settings
from genaifactory_orchestrator.stores.conversations import Conversations, Key
from genaifactory_orchestrator.stores.conversations_schema import metadata
from tests.unit.orchestrator.conftest import MakeWorld, World, assistant, user

KEY = Key("acme", "alice", "c1")

# The schema of the version before migrations.
FORMER = """
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, principal TEXT NOT NULL, name TEXT NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (tenant, principal, name));
CREATE INDEX conversations_updated ON conversations (tenant, principal, updated_at);
CREATE TABLE messages (
    conversation INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    number INTEGER NOT NULL, created_at REAL NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (conversation, number)) WITHOUT ROWID;
CREATE INDEX messages_created ON messages (created_at);
PRAGMA user_version = 1;
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A unix socket's path is bounded to about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Path(folder)


def make_former(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    connection = sqlite3.connect(folder / "conversations.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(FORMER)
    connection.execute("INSERT INTO conversations VALUES (7, 'acme', 'alice', 'c1', unixepoch())")
    for number, message in enumerate((user("I am Ann."), assistant("Hi Ann.")), start=1):
        row = (number, message.SerializeToString())
        connection.execute("INSERT INTO messages VALUES (7, ?, unixepoch(), ?)", row)
    connection.commit()
    connection.close()


Seen = TypeVar("Seen")


def settings_for(folder: Path, url: str | None, **others: Any) -> Settings:
    return Settings(data_dir=folder, database_url=url, **others)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Conversations]:
    store = Conversations(settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def texts(store: Conversations) -> list[str]:
    return [message.content for message in (await store.begin(KEY, limit=100)).messages]


async def seen(settings: Settings, look: Callable[[sa.Connection], Seen]) -> Seen:
    """The result of `look` on the database, after a store has opened it."""
    async with opened(settings):
        pass
    url = settings.database_url.get_secret_value() if settings.database_url else None
    file = f"sqlite+aiosqlite:///{settings.data_dir}/conversations.db"
    engine = await asyncio.to_thread(create_async_engine, url or file)
    async with engine.connect() as connection:
        found = await connection.run_sync(look)
    await engine.dispose()
    return found


async def test_the_migrations_create_the_schema_that_the_code_uses(tmp_path: Path, database_url: str | None) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"version_table": "orchestrator_alembic_version"}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert await seen(settings_for(tmp_path, database_url), differences) == []


async def test_a_file_of_the_version_before_migrations_gets_the_schema_of_a_new_one(tmp_path: Path) -> None:
    def schema(connection: sa.Connection) -> list[list[str]]:
        columns = "SELECT m.name, c.name, c.type, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c"
        indexes = "SELECT i.name, c.name FROM sqlite_schema m, pragma_index_list(m.name) i, pragma_index_info(i.name) c"
        return [sorted(map(str, connection.exec_driver_sql(query))) for query in (columns, indexes)]

    for folder in (tmp_path / "former", tmp_path / "new"):
        await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread(make_former, tmp_path / "former")
    former = await seen(settings_for(tmp_path / "former", None), schema)
    assert former == await seen(settings_for(tmp_path / "new", None), schema)
    assert len(former[0]) > 9


async def test_a_file_of_the_version_before_migrations_keeps_its_data(tmp_path: Path) -> None:
    await asyncio.to_thread(make_former, tmp_path)
    for expected in (["I am Ann.", "Hi Ann."], ["I am Ann.", "Hi Ann.", "next"]):
        async with opened(settings_for(tmp_path, None)) as store:
            history = await store.begin(KEY, limit=100)
            assert history.number == 7
            assert [message.content for message in history.messages] == expected
            await store.add_turn(history, [user("next")])
    async with opened(settings_for(tmp_path, None)) as store:
        assert await store.erase(KEY)
        assert (await store.begin(KEY, limit=9)).number == 8, "numbering continues"


async def test_replicas_that_open_an_empty_database_concurrently_all_succeed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    settings = settings_for(tmp_path, await asyncio.to_thread(postgres.new_database))
    stores = [Conversations(settings) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        await store.add_turn(await store.begin(KEY, limit=0), [user("x")])
    assert await texts(stores[0]) == ["x"] * 4
    for store in stores:
        await store.close()


async def test_a_second_process_with_the_same_file_fails_to_start(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, None, store={"busy_timeout_seconds": 0.05})
    async with opened(settings):
        with pytest.raises(Unavailable, match="store of conversations is locked by another process"):
            await Conversations(settings).open()
    async with opened(settings):
        pass


async def test_the_file_is_private_to_the_orchestrators_account(tmp_path: Path) -> None:
    async with opened(settings_for(tmp_path / "made", None)) as store:
        await store.begin(KEY, limit=9)
        files = await asyncio.to_thread(lambda: list((tmp_path / "made").iterdir()))
        modes = await asyncio.to_thread(lambda: {path.name: stat.S_IMODE(path.stat().st_mode) for path in files})
    assert "conversations.db" in modes
    assert set(modes.values()) == {0o600}


async def test_a_damaged_file_ends_the_start(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "conversations.db").write_bytes, b"not a database" * 1000)
    with pytest.raises(Unavailable, match="is damaged"):
        await Conversations(settings_for(tmp_path, None)).open()


async def test_while_postgresql_is_unreachable_at_the_start_only_requests_with_conversations_fail(
    make_world: MakeWorld, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    async with AsyncExitStack() as stack:
        async with postgres.away():
            world = await stack.enter_async_context(make_world(database_url=url))
            assert (await world.ask(route="chat")).text() == "You have 14 days [1]."
            for _ in range(3):
                error, record = await world.failure(route="chat", conversation_id="c1")
                assert isinstance(error, Unavailable)
                assert error.retry_after_seconds == 1.0
                assert record.outcome == monitor_pb2.OUTCOME_FAILED
            assert len(world.modelserver.requests) == 1, "no model is called for a turn that cannot begin"
        async with asyncio.timeout(20):
            while not await begins(world):  # noqa: ASYNC110  # each check is a request
                await asyncio.sleep(0.1)
        await world.ask("Who am I?", route="chat", conversation_id="c1")
        assert world.modelserver.requests[-1].conversation.messages[0].content == "I am Ann."
    logged = [each.message for each in caplog.records if each.message.startswith("The store of conversations fails")]
    assert len(logged) == len(set(logged)) > 0, "each error is logged once"


async def begins(world: World) -> bool:
    try:
        await world.ask("I am Ann.", route="chat", conversation_id="c1")
    except Unavailable:
        return False
    return True


async def test_a_stop_while_postgresql_is_unreachable_leaves_no_task_behind(
    make_world: MakeWorld, postgres: PostgresServer
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    async with postgres.away(), asyncio.timeout(10):
        async with make_world(database_url=url):
            assert "conversations-open" in {task.get_name() for task in asyncio.all_tasks()}
        assert "conversations-open" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_an_answer_whose_turn_cannot_be_stored_is_sent_and_its_record_has_the_error(
    make_world: MakeWorld, postgres: PostgresServer
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    going_on = asyncio.Event()
    async with make_world(database_url=url, conversations={"retry_seconds": 0.3}) as world:
        world.modelserver.script = ["It is ", going_on, "done."]
        request = world.request(route="chat", conversation_id="c1")
        asking = asyncio.create_task(world.send(request))
        await world.until(lambda: world.modelserver.running)
        async with postgres.away():
            going_on.set()
            answer = await asking
        assert answer.text() == "It is done."
        assert list(answer.done.finish_reasons) == [types_pb2.FINISH_REASON_STOP]
        record = await world.recorded(request.request_id)
        assert record.outcome == monitor_pb2.OUTCOME_ANSWERED
        assert record.error_reason == "UNAVAILABLE"
        assert "not in its conversation" in record.error_message
        world.modelserver.script = ["ok"]
        await world.ask("next", route="chat", conversation_id="c1")
        assert [m.content for m in world.modelserver.requests[-1].conversation.messages] == ["next"]


async def test_storing_a_turn_is_retried_until_postgresql_is_back(
    make_world: MakeWorld, postgres: PostgresServer
) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    going_on = asyncio.Event()
    async with make_world(database_url=url) as world:
        world.modelserver.script = ["It is ", going_on, "done."]
        asking = asyncio.create_task(world.ask("How is it?", route="chat", conversation_id="c1"))
        await world.until(lambda: world.modelserver.running)
        async with postgres.away():
            going_on.set()
            await asyncio.wait([asking], timeout=0.3)
            assert not asking.done()
        await asking
        world.modelserver.script = ["ok"]
        await world.ask("next", route="chat", conversation_id="c1")
        stored = [m.content for m in world.modelserver.requests[-1].conversation.messages]
        assert stored == ["How is it?", "It is done.", "next"]


async def test_a_turn_whose_commit_was_not_acknowledged_is_stored_once(
    short_path: Path, postgres: PostgresServer
) -> None:
    relay = Relay(postgres.folder / ".s.PGSQL.5432")
    url = (await asyncio.to_thread(postgres.new_database)).replace(str(postgres.folder), str(short_path))
    async with (
        await asyncio.start_unix_server(relay.serve, short_path / ".s.PGSQL.5432"),
        opened(settings_for(short_path, url)) as store,
    ):
        history = await store.begin(KEY, limit=9)
        relay.cuts_at_commit = True
        await store.add_turn(history, [user("q"), assistant("a")])
        assert not relay.cuts_at_commit, "the first attempt was cut off"
        assert await texts(store) == ["q", "a"]


class Relay:
    """A relay between a client and PostgreSQL, which can close the connection instead of passing a COMMIT's reply."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self.cuts_at_commit = False

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(self._server)
        backwards = asyncio.create_task(_copy(server, to_client))
        while data := await client.read(65536):
            if cut := self.cuts_at_commit and b"COMMIT" in data:
                self.cuts_at_commit = False
                backwards.cancel()
                await asyncio.wait([backwards])
            to_server.write(data)
            if cut:
                assert b"COMMIT" in await server.read(65536)
                break
        for writer in (to_client, to_server):
            writer.close()
        await asyncio.wait([backwards])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
