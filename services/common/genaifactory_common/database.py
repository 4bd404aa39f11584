"""A service's database, SQLite or PostgreSQL with one schema: connections, migrations, and errors.

SQLite has one connection that writes (in its own thread, so that writers queue instead of failing on a lock) and a few
that read; PostgreSQL has one pool for both, and services may share a database there. Needs the extra `database`, for
PostgreSQL `postgresql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from pydantic import AfterValidator, Field, SecretStr
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from genaifactory_common import background, settings, sqlite_files
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import Unavailable
from genaifactory_common.space import is_full, out_of_space
from genaifactory_common.sqlite_files import Pragmas, SqliteFile

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=5.0)
# Building an index over a table of 100 million rows takes minutes.
_MIGRATION_STATEMENT_SECONDS = 3600.0
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""The form of values in columns of JSON."""


def _postgresql_url(value: SecretStr) -> SecretStr:
    try:
        url = sa.make_url(value.get_secret_value())
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError("must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    if url.drivername not in ("postgresql", "postgresql+asyncpg") or not url.database:
        raise ValueError("must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if importlib.util.find_spec("asyncpg") is None:
        raise ValueError("needs PostgreSQL's driver, which is not installed; install genaifactory-common[postgresql]")
    return SecretStr(url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False))


DatabaseUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
"""The URL of a PostgreSQL database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE[?ssl=verify-full]."""


class Store(settings.Settings):
    """Connections and timeouts of a database."""

    connections: int = Field(
        default=5, ge=1, le=200, description="PostgreSQL: all connections. SQLite: readers, beside the one writer."
    )
    connect_timeout_seconds: float = Field(default=5.0, gt=0, description="To reach PostgreSQL.")
    busy_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Wait for a free connection, and for another process's lock on SQLite."
    )
    statement_timeout_seconds: float = Field(default=30.0, gt=0, description="For one statement on PostgreSQL.")


@dataclass(frozen=True)
class Layout:
    """What is specific to one service's database."""

    service: str
    """The service, as PostgreSQL's application_name."""
    name: str
    """The subject of error messages: "The monitor's database"."""
    file_name: str
    """Of SQLite's file."""
    loss: str
    """What is lost without it, as the object of a sentence."""
    migrations: Path
    """Alembic's folder; its scripts have `upgrade(op: Operations)` and `downgrade(op: Operations)`."""
    version_table: str
    """The table of applied migrations; each service's own."""
    migration_lock: int
    """The number of PostgreSQL's advisory lock for migrations; unique in the database."""
    exclusive: bool = False
    """SQLite: one connection holds the file, and no other process can open it."""
    secure_delete: bool = False
    """SQLite: deleted content is overwritten."""


class Database:
    """One database, of either kind. `open` before use, `close` after; before `open`, every use raises Unavailable."""

    def __init__(self, layout: Layout, *, data_dir: Path, url: SecretStr | None, store: Store) -> None:
        """data_dir: holds SQLite's file. url: a `DatabaseUrl`; None: SQLite."""
        self.postgresql = url is not None
        self._layout = layout
        self._file = SqliteFile(data_dir / layout.file_name, layout.name, layout.loss)
        self._data_dir = data_dir
        self._url = url
        self._store = store
        self._writer: AsyncEngine | None = None
        self._reader: AsyncEngine | None = None
        self._failures: set[str] = set()
        self._running = 0
        self._unused = asyncio.Event()
        """Set while no transaction runs."""
        self._unused.set()
        self._unreachable: tuple[type[Exception], ...] = _connection_errors() if self.postgresql else (OSError,)

    async def open(self) -> None:
        """Creates what is missing and migrates. Raises Unavailable when the database cannot be reached."""
        writer, reader = await asyncio.to_thread(self._engines)
        migrator = self._postgresql(_MIGRATION_STATEMENT_SECONDS) if self.postgresql else writer
        try:
            await self._migrate(migrator)
        except BaseException:
            await _dispose(writer, reader)
            raise
        finally:
            if migrator is not writer:
                await migrator.dispose()
        self._writer, self._reader = writer, reader

    async def open_when_reachable(self) -> None:
        """`open`, retried until PostgreSQL accepts: a server may come back, and a restart would not help.

        Raises Unavailable for SQLite, whose file a person must repair.
        """
        failures = 0
        while True:
            try:
                await self.open()
            except Unavailable:
                if not self.postgresql:
                    raise
            else:
                return
            failures += 1
            await asyncio.sleep(_BACKOFF.seconds(failures))

    async def close(self) -> None:
        """Closes every connection, once the transactions that run have ended: their callers may be gone."""
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._store.statement_timeout_seconds):
                await self._unused.wait()
        await _dispose(writer, reader)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; it is on disk when the block is left. Raises Unavailable."""
        async with self._transaction(self._writer) as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads one state. Raises Unavailable."""
        async with self._transaction(self._reader) as connection:
            yield connection

    async def truncate_log(self) -> None:
        """SQLite: moves the write-ahead log into the file, so that no deleted bytes remain. Raises Unavailable.

        On PostgreSQL, which has no such command, it does nothing: VACUUM and the server's own log apply there.
        """
        if self.postgresql:
            return
        if self._writer is None:
            raise self._unavailable("cannot be reached")
        try:
            async with self._writer.connect() as connection:
                # Not through SQLAlchemy, which would begin a transaction: the log can be emptied only outside of one.
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            logger.error("the write-ahead log cannot be emptied: %s", error)
            raise self._unavailable("cannot be used now") from error

    async def _migrate(self, engine: AsyncEngine) -> None:
        scripts = await asyncio.to_thread(_scripts, self._layout.migrations)
        async with self._transaction(engine) as connection:
            if self.postgresql:  # on SQLite BEGIN IMMEDIATE is the lock
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(self._layout.migration_lock)))
            await connection.run_sync(_upgrade, scripts, self._layout.version_table)

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine | None) -> AsyncIterator[AsyncConnection]:
        """Raises the drivers' errors as Unavailable: a retry may help.

        Nothing was committed, unless PostgreSQL went away between a COMMIT and its acknowledgement.
        """
        if engine is None:
            raise self._unavailable("cannot be reached")
        self._running += 1
        self._unused.clear()
        try:
            async with engine.begin() as connection:
                yield connection
        except sa.exc.TimeoutError as error:
            raise self._unavailable("is overloaded: all of its connections are busy") from error
        except sa.exc.DBAPIError as error:
            if not _is_passing(error):
                raise
            if sqlite_files.is_damage(error.orig):
                self._log_once(self._file.damaged(f"it is damaged ({error.orig})").message)
            else:
                self._log_once(str(error.orig))
            if is_full(error.orig):
                raise out_of_space(self._data_dir) from error
            raise self._unavailable(sqlite_files.why(str(error.orig))) from error
        except self._unreachable as error:  # while connecting
            self._log_once(type(error).__name__)  # its text may hold the password
            raise self._unavailable("cannot be reached") from error
        finally:
            self._running -= 1
            if not self._running:
                self._unused.set()
        if self._failures:
            self._failures.clear()
            logger.info("%s works now", self._layout.name)

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"{self._layout.name} {why}.", retry_after_seconds=1.0)

    def _log_once(self, failure: str) -> None:
        """Logs a failure once until the database works again: meanwhile every call fails."""
        if failure not in self._failures:
            self._failures.add(failure)
            logger.error("%s fails: %s", self._layout.name, failure)

    def _engines(self) -> tuple[AsyncEngine, AsyncEngine]:
        if self.postgresql:
            engine = self._postgresql(self._store.statement_timeout_seconds)
            return engine, engine
        self._prepare_file()
        writer = self._sqlite(connections=1, begin="BEGIN IMMEDIATE")
        if self._layout.exclusive:
            return writer, writer
        return writer, self._sqlite(connections=self._store.connections, begin="BEGIN")

    def _sqlite(self, *, connections: int, begin: str) -> AsyncEngine:
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=str(self._file.path)),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._store.busy_timeout_seconds,
            connect_args={"timeout": self._store.busy_timeout_seconds},
            json_serializer=encode_json,
            hide_parameters=True,  # in errors, which are logged: they hold questions and answers
        )

        # FULL: a commit outlives a power cut, since the sender deletes its copy once it is acknowledged.
        pragmas = Pragmas("FULL", exclusive=self._layout.exclusive, secure_delete=self._layout.secure_delete)

        def connected(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # BEGIN is explicit: sqlite3 would leave reads and DDL outside
            cursor = connection.cursor()
            pragmas.set(cursor.execute)
            cursor.close()

        def begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

        sa.event.listen(engine.sync_engine, "connect", connected)
        sa.event.listen(engine.sync_engine, "begin", begun)
        return engine

    def _postgresql(self, statement_timeout_seconds: float) -> AsyncEngine:
        assert self._url is not None, "of PostgreSQL"
        return create_async_engine(
            self._url.get_secret_value(),
            pool_size=self._store.connections,
            max_overflow=0,
            pool_timeout=self._store.busy_timeout_seconds,
            pool_pre_ping=True,  # a failover leaves dead connections in the pool
            connect_args={
                "timeout": self._store.connect_timeout_seconds,
                "command_timeout": statement_timeout_seconds,
                "server_settings": {"application_name": f"genaifactory-{self._layout.service}"},
            },
            json_serializer=encode_json,
            hide_parameters=True,  # in errors, which are logged: they hold questions and answers
        )

    def _prepare_file(self) -> None:
        try:
            self._file.prepare()
        except OSError as error:
            raise Unavailable(
                f"The {self._layout.service} cannot write to its folder {self._data_dir}: {error.strerror}."
            ) from None


def uninterrupted(
    work: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Lets a function that holds a transaction end it before a cancellation of its caller takes effect.

    Interrupted, it would lose its connection, whose state the driver cannot determine. The work is short: the timeouts
    of `Store` bound it.
    """

    @functools.wraps(work)
    async def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return await background.to_the_end(work(*args, **kwargs))

    return run


def insert(table: sa.Table, *, into_postgresql: bool) -> Any:
    """An INSERT with ON CONFLICT; the SQL is the same for both databases, SQLAlchemy has a class for each."""
    return postgresql.insert(table) if into_postgresql else sqlite.insert(table)


async def _dispose(*engines: AsyncEngine | None) -> None:
    for engine in {engine for engine in engines if engine is not None}:
        await engine.dispose()


def _scripts(migrations: Path) -> ScriptDirectory:
    scripts = ScriptDirectory(str(migrations))
    scripts.get_heads()  # reads every script now, off the event loop
    return scripts


def _upgrade(connection: sa.Connection, scripts: ScriptDirectory, version_table: str) -> None:
    def steps(revision: Any, _: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)

    context = MigrationContext.configure(connection, opts={"fn": steps, "version_table": version_table})
    known = {script.revision for script in scripts.walk_revisions()}
    if newer := set(context.get_current_heads()) - known:
        # After a rollback, or in an old pod during an update: migrations only add, so this version can use the schema.
        logger.warning("a newer version of the platform has migrated the database, to %s", ", ".join(sorted(newer)))
        return
    # Not through `alembic.op`, which is global: several databases may be opened at once.
    context.run_migrations(op=Operations(context))


def _connection_errors() -> tuple[type[Exception], ...]:
    """Errors of PostgreSQL's driver while it connects, which SQLAlchemy does not translate."""
    import asyncpg  # type: ignore[import-untyped]  # it ships no types

    return OSError, asyncpg.PostgresError, asyncpg.InterfaceError


def _is_passing(error: sa.exc.DBAPIError) -> bool:
    """Whether the database's state is the reason, and not our statement."""
    if error.connection_invalidated or isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return True
    if sqlite_files.is_damage(error.orig):
        return True
    # 08 connection, 28 authorisation, 3D no such database, 40 deadlock, 53 no room, 57 shut down, 58 system error;
    # 25006 read-only: a server that has just become the standby; 42501 a privilege that may still be granted.
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return state[:2] in ("08", "28", "3D", "40", "53", "57", "58") or state in ("25006", "42501")
