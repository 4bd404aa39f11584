"""A SQLite file with one writer: a thread of its own runs the statements, so that async code never blocks."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from genaifactory_common import sqlite_files
from genaifactory_common.errors import Unavailable
from genaifactory_common.sqlite_files import Pragmas, SqliteFile, transaction

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")


class Database:
    """A file with one connection that writes. `open` before the first `run`, `close` after the last."""

    def __init__(
        self,
        file: SqliteFile,
        pragmas: Pragmas,
        migrate: Callable[[sqlite3.Connection], None],
        *,
        busy_seconds: float = 1.0,
    ) -> None:
        """migrate: creates missing tables, outside of a transaction; for example `migrations`."""
        self._file = file
        self._pragmas = pragmas
        self._migrate = migrate
        self._busy_seconds = busy_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=file.path.stem)
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Creates or migrates the file. Raises Damaged, and Unavailable when it is held by another process."""
        try:
            await self.in_thread(self.open_here)
        except (sqlite3.Error, OSError) as error:
            if sqlite_files.is_damage(error):
                raise self._file.damaged(f"it is damaged ({error})") from error
            raise Unavailable(
                f"{self._file.path} cannot be opened ({error}); it must be writable and used by one process only."
            ) from error

    def open_here(self) -> None:
        """As `open`; blocks. Raises Damaged, sqlite3.Error and OSError."""
        self._file.prepare()
        connection = sqlite_files.connect(self._file.path, self._pragmas, busy_seconds=self._busy_seconds)
        try:
            self._migrate(connection)
            with transaction(connection):
                pass  # with `exclusive`, this acquires the lock of the file
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def explained(self, error: sqlite3.Error) -> Unavailable:
        """The client's error for an error that `run` raised; the details and the remedy are logged."""
        return self._file.explained(error)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in one transaction on the file's thread. Raises sqlite3.Error."""

        def run() -> T:
            with self.transaction() as connection:
                return work(connection)

        return await self.in_thread(run)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, for use in the file's thread or before that has work. Raises sqlite3.Error."""
        if self._connection is None:
            raise sqlite3.ProgrammingError(f"{self._file.path} is not open")
        with transaction(self._connection) as connection:
            yield connection

    async def in_thread(self, work: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """What `work` returns; it may block. The file's thread runs calls one after another, in their order."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def discard(self) -> None:
        """Removes the file. Raises OSError."""
        await self._disconnect()
        await self.in_thread(self._file.remove)

    async def close(self) -> None:
        """Closes the file, and ends the thread after the calls before it."""
        await self._disconnect()
        self._thread.shutdown(wait=False)

    def close_here(self) -> None:
        """As `close`; blocks until the thread has ended."""
        self._thread.shutdown(wait=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self.in_thread(connection.close)


def migrations(*scripts: str) -> Callable[[sqlite3.Connection], None]:
    """Runs each script once, in their order; the file stores how many were run."""

    def migrate(connection: sqlite3.Connection) -> None:
        for number, script in enumerate(scripts, start=1):
            if connection.execute("PRAGMA user_version").fetchone()[0] < number:
                connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")

    return migrate
