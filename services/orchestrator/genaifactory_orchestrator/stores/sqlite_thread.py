"""One SQLite file with one writer: a thread of its own runs every statement, so that async code never blocks."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from genaifactory_common import sqlite_files
from genaifactory_common.errors import Unavailable
from genaifactory_common.sqlite_files import SqliteFile

T = TypeVar("T")


class Database:
    """A file that this process alone holds open. `open` before the first `run`, `close` after the last."""

    def __init__(
        self, file: SqliteFile, migrations: tuple[str, ...], *, synchronous: Literal["FULL", "NORMAL"]
    ) -> None:
        """migrations: scripts in order; the file remembers how many it has seen.

        synchronous: FULL survives a power cut, NORMAL only the death of the process.
        """
        self._file = file
        self._migrations = migrations
        self._synchronous = synchronous
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=file.path.stem)
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Creates or migrates the file. Raises Damaged, and Unavailable when it is held by another process."""
        try:
            self._connection = await self._in_thread(self._opened)
        except (sqlite3.Error, OSError) as error:
            if sqlite_files.is_damage(error):
                raise self._file.damaged(f"it is damaged ({error})") from error
            raise Unavailable(
                f"{self._file.path} cannot be opened ({error}); it must be writable and used by one process only."
            ) from error

    def explained(self, error: sqlite3.Error) -> Unavailable:
        """What an error that `run` raised means to a client; what to do about it is logged."""
        return self._file.explained(error)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, run in one transaction on the file's thread. Raises sqlite3.Error."""
        return await self._in_thread(lambda: self._transaction(work))

    async def discard(self) -> None:
        """Removes the file. Raises OSError."""
        await self._disconnect()
        await self._in_thread(self._file.remove)

    async def close(self) -> None:
        """Ends the thread after what was handed to it."""
        await self._disconnect()
        self._thread.shutdown(wait=False)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._in_thread(connection.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError(f"{self._file.path} is not open")
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk may have ended it
                connection.execute("ROLLBACK")
            raise
        return result

    def _opened(self) -> sqlite3.Connection:
        self._file.prepare()
        connection = sqlite3.connect(self._file.path, isolation_level=None, timeout=1.0, check_same_thread=False)
        try:
            # Exclusive: a second process fails here and not later; and WAL then needs no shared memory.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA secure_delete=ON")  # what is erased is erased from the file too
            for number, script in enumerate(self._migrations, start=1):
                if connection.execute("PRAGMA user_version").fetchone()[0] < number:
                    connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version={number}; COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection
