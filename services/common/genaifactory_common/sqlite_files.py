"""SQLite files: created atomically, checked before use; their connections, transactions and errors."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genaifactory_common.damage import Damaged, damaged_database
from genaifactory_common.errors import Unavailable
from genaifactory_common.space import is_full, out_of_space

logger = logging.getLogger(__name__)

_CHECKED_BYTES = 64 << 20
"""Larger files are not checked as a whole, which takes 1.3 ms for each MiB."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class Pragmas:
    """Options of connections to a file with a write-ahead log."""

    synchronous: Literal["FULL", "NORMAL"]
    """FULL: a commit outlives a power cut; NORMAL: only the end of the process."""
    exclusive: bool = False
    """One connection holds the file: a second process cannot open it, and the log needs no shared memory."""
    secure_delete: bool = False
    """Deleted content is overwritten."""

    def set(self, execute: Callable[[str], object]) -> None:
        """Sets the options of a new connection. execute: runs a statement on it. Raises sqlite3.Error."""
        if self.exclusive:
            execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {self.synchronous}")
        if self.secure_delete:
            execute("PRAGMA secure_delete = ON")


def connect(path: Path, pragmas: Pragmas, *, busy_seconds: float) -> sqlite3.Connection:
    """A connection for use in any thread, without a transaction: see `transaction`. Blocks. Raises sqlite3.Error.

    busy_seconds: how long a statement waits for a lock of another connection.
    """
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        pragmas.set(connection.execute)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction around the block, with the lock for writing. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it
            connection.execute("ROLLBACK")
        raise


@dataclass(frozen=True)
class SqliteFile:
    """A database of one service in one file."""

    path: Path
    name: str
    """The subject of clients' error messages: "The monitor's database"."""
    loss: str
    """What is lost without the file, as the object of a sentence: "all stored conversations"."""
    _logged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def prepare(self) -> None:
        """Creates an empty database where there is no file, and checks one that is there. Blocks.

        The file's mode is 0600, and SQLite gives its log the same. Raises Damaged, and OSError when the folder cannot
        be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            create(self.path)
            return
        if not self.path.is_file():
            raise self.damaged("it is no file")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise self.damaged("it may not be read and written by this user")
        if size == 0:  # SQLite would treat it as new, and the loss of its content would go unnoticed
            raise self.damaged("it is empty")
        if size <= _CHECKED_BYTES:
            self._check()

    def damaged(self, why: str) -> Damaged:
        """The error that ends the service's start."""
        return damaged_database(self.path, why, self.loss)

    def explained(self, error: sqlite3.Error) -> Unavailable:
        """The client's error for an error while the service runs; the details and the remedy are logged, once."""
        if is_full(error):
            return out_of_space(self.path.parent)
        damage = is_damage(error)
        if str(error) not in self._logged:  # every call may fail with it
            self._logged.add(str(error))
            message = self.damaged(f"it is damaged ({error})").message if damage else f"{self.path} fails: {error}"
            logger.error("%s", message)
        if damage:
            return Unavailable(f"{self.name} is damaged; the log of the service says what to do.")
        return Unavailable(f"{self.name} {why(str(error))}.", retry_after_seconds=1.0)

    def remove(self) -> None:
        """Deletes it, with its log. Raises OSError."""
        remove(self.path)

    def _check(self) -> None:
        try:
            with closing(sqlite3.connect(self.path, timeout=0)) as connection:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                return  # the connection that is opened for use waits, or reports the error
            found = str(error)
        if found != "ok":
            raise self.damaged(f"it is damaged ({found})")


def create(path: Path, schema: str = "") -> None:
    """Creates a database with a write-ahead log, in one step: nobody sees it without its tables. Mode: 0600.

    Of several processes only one may do so. Raises sqlite3.Error and OSError.
    """
    new = path.with_name(f".{secrets.token_hex(8)}.new")
    remove(path)  # the log of a former file would be read into this one
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(new)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # writes the header: the file is not empty any more
            connection.executescript(schema)
        os.replace(new, path)
    finally:
        remove(new)


def remove(path: Path) -> None:
    """Deletes a file with its log. Raises OSError."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def is_damage(error: object) -> bool:
    """Whether an error of SQLite means that the file is damaged."""
    return isinstance(error, sqlite3.Error) and _code(error) in _DAMAGE


def why(text: str) -> str:
    """The meaning of an error's text, as the predicate of a sentence."""
    text = text.lower()
    for sign, meaning in (
        ("locked", "is locked by another process"),
        ("busy", "is locked by another process"),
        ("full", "has no room left on its disk"),
        ("no space", "has no room left on its disk"),
        ("readonly", "is read-only"),
        ("malformed", "is damaged"),
        ("not a database", "is damaged"),
    ):
        if sign in text:
            return meaning
    return "cannot be used now"


def _code(error: sqlite3.Error) -> int:
    """The primary code; 0 for an error of Python's own."""
    with suppress(AttributeError):
        return error.sqlite_errorcode & 0xFF
    return 0
