"""The two databases behind one schema: connections, migrations, and what their failures mean.

SQLite has one connection that writes (in its own thread, so that writers queue instead of colliding) and a few that
read; PostgreSQL has one pool for both.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from genaifactory_common.errors import Unavailable
from genaifactory_monitor.settings import Settings

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

FILE_NAME = "monitor.sqlite"
MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that nothing else in the database locks by.
_MIGRATION_LOCK = 0x67656E61
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Database:
    """One database, either kind. `open` before use, `close` after."""

    _writer: AsyncEngine
    _reader: AsyncEngine

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.postgresql = settings.database_url is not None

    async def open(self) -> None:
        """Creates what is missing and migrates. Raises Unavailable when the database cannot be reached."""
        self._writer, self._reader = await asyncio.to_thread(_engines, self._settings)
        try:
            await self._migrate()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes every connection."""
        for engine in {self._writer, self._reader}:
            await engine.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; it is on disk when the block is left. Raises Unavailable."""
        with _translated():
            async with self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state. Raises Unavailable."""
        with _translated():
            async with self._reader.begin() as connection:
                yield connection

    async def _migrate(self) -> None:
        scripts = await asyncio.to_thread(_scripts)
        async with self.writing() as connection:
            if self.postgresql:  # on SQLite BEGIN IMMEDIATE is the lock
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            await connection.run_sync(_upgrade, scripts)


def uninterrupted(
    work: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Lets a function that holds a transaction end it before its caller's cancellation goes on.

    Cut in the middle, it would cost its connection: the driver cannot tell what state it is in. The work is short:
    the timeouts of `settings.Store` bound it.
    """

    @functools.wraps(work)
    async def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        task = asyncio.create_task(work(*args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # nobody is left to hear of it; what matters is logged
            raise

    return run


def insert(table: sa.Table, *, into_postgresql: bool) -> Any:
    """An INSERT that knows ON CONFLICT; both databases spell it alike, SQLAlchemy types them apart."""
    return postgresql.insert(table) if into_postgresql else sqlite.insert(table)


def _engines(settings: Settings) -> tuple[AsyncEngine, AsyncEngine]:
    if settings.database_url is not None:
        engine = _postgresql(settings, settings.database_url.get_secret_value())
        return engine, engine
    _private_file(settings.data_dir)
    url = sa.URL.create("sqlite+aiosqlite", database=str(settings.data_dir / FILE_NAME))
    return (
        _sqlite(settings, url, connections=1, begin="BEGIN IMMEDIATE"),
        _sqlite(settings, url, connections=settings.store.connections, begin="BEGIN"),
    )


def _sqlite(settings: Settings, url: sa.URL, *, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=settings.store.busy_timeout_seconds,
        connect_args={"timeout": settings.store.busy_timeout_seconds},
        json_serializer=_json,
    )

    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: sqlite3 would leave reads and DDL outside
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        # An acknowledged record outlives a power cut, not only a crash of the process: its sender forgets it.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine.sync_engine, "connect", connected)
    sa.event.listen(engine.sync_engine, "begin", begun)
    return engine


def _postgresql(settings: Settings, url: str) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=settings.store.connections,
        max_overflow=0,
        pool_timeout=settings.store.busy_timeout_seconds,
        pool_pre_ping=True,  # a failover leaves dead connections in the pool
        connect_args={
            "timeout": settings.store.connect_timeout_seconds,
            "command_timeout": settings.store.statement_timeout_seconds,
            "server_settings": {"application_name": "genaifactory-monitor"},
        },
        json_serializer=_json,
    )


def _private_file(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Conversations are private; SQLite gives its other files the mode of this one.
        os.close(os.open(folder / FILE_NAME, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise Unavailable(f"The monitor cannot write to its folder {folder}: {error.strerror}.") from None


def _scripts() -> ScriptDirectory:
    scripts = ScriptDirectory(str(MIGRATIONS))
    scripts.get_heads()  # reads every script now, off the event loop
    return scripts


def _upgrade(connection: sa.Connection, scripts: ScriptDirectory) -> None:
    def steps(revision: Any, _: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)

    context = MigrationContext.configure(connection, opts={"fn": steps})
    with Operations.context(context):
        context.run_migrations()


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what the drivers raise into Unavailable: nothing was committed, and trying again may help."""
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise Unavailable("All of the monitor's database connections are busy.", retry_after_seconds=1.0) from error
    except sa.exc.DBAPIError as error:
        if not _is_passing(error):
            raise
        logger.error("the database failed: %s", error.orig)
        raise Unavailable(f"The monitor's database {_why(error)}.", retry_after_seconds=1.0) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # while connecting
        logger.error("the database cannot be reached: %s", type(error).__name__)
        raise Unavailable("The monitor's database cannot be reached.", retry_after_seconds=1.0) from error


def _is_passing(error: sa.exc.DBAPIError) -> bool:
    """The database's state is the reason, not our statement."""
    if error.connection_invalidated or isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return True
    if "malformed" in str(error.orig) or "not a database" in str(error.orig):
        return True
    # SQLSTATE 08 connection, 28 authorisation, 3D no such database, 53 no room, 57 shut down, 58 system error
    return str(getattr(error.orig, "sqlstate", None) or "")[:2] in ("08", "28", "3D", "53", "57", "58")


def _why(error: sa.exc.DBAPIError) -> str:
    text = str(error.orig).lower()
    for sign, why in (
        ("locked", "is locked by another process"),
        ("busy", "is locked by another process"),
        ("full", "has no room left on its disk"),
        ("no space", "has no room left on its disk"),
        ("readonly", "is read-only"),
        ("malformed", "is damaged"),
        ("not a database", "is damaged"),
    ):
        if sign in text:
            return why
    return "cannot be used now"
