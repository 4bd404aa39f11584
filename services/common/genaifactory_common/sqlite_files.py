"""SQLite files: made whole, looked through before they are used, how they are opened, and what their failures mean."""

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

_LOOKED_THROUGH_BYTES = 64 << 20
"""Of larger files only what is used is looked at: looking takes 1.3 ms for each MiB."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class Pragmas:
    """How connections use a file, whose changes go through a write-ahead log."""

    synchronous: Literal["FULL", "NORMAL"]
    """FULL: a commit outlives a power cut; NORMAL: the death of the process only."""
    exclusive: bool = False
    """One connection holds the file: a second process fails when it opens it, and the log needs no shared memory."""
    secure_delete: bool = False
    """What is deleted is overwritten."""

    def set(self, execute: Callable[[str], object]) -> None:
        """On a new connection, before it is used. execute: runs a statement on it. Raises sqlite3.Error."""
        if self.exclusive:
            execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {self.synchronous}")
        if self.secure_delete:
            execute("PRAGMA secure_delete = ON")


def connect(path: Path, pragmas: Pragmas, *, busy_seconds: float) -> sqlite3.Connection:
    """A connection for any thread, outside of a transaction: see `transaction`. Blocks. Raises sqlite3.Error.

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
    """What the block writes, all or nothing; nobody else writes meanwhile. Raises sqlite3.Error."""
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
    """The subject of what a client reads: "The monitor's database"."""
    loss: str
    """What is lost without the file, as the object of a sentence: "all stored conversations"."""
    _logged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def prepare(self) -> None:
        """Makes an empty database where there is no file, and looks through one that is there. Blocks.

        A file is its owner's alone, and SQLite gives its log the same mode. Raises Damaged, and OSError when the folder
        cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            self._create()
            return
        if not self.path.is_file():
            raise self.damaged("it is no file")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise self.damaged("it may not be read and written by this user")
        if size == 0:  # SQLite would take it for a new one, and all that it held would be gone without a word
            raise self.damaged("it is empty")
        if size <= _LOOKED_THROUGH_BYTES:
            self._look_through()

    def damaged(self, why: str) -> Damaged:
        """The error for whoever starts the service."""
        return damaged_database(self.path, why, self.loss)

    def explained(self, error: sqlite3.Error) -> Unavailable:
        """What an error means while the service runs, for its client; what to do about it is logged, once."""
        if is_full(error):
            return out_of_space(self.path.parent)
        damage = is_damage(error)
        if str(error) not in self._logged:  # while it fails, every call does
            self._logged.add(str(error))
            message = self.damaged(f"it is damaged ({error})").message if damage else f"{self.path} fails: {error}"
            logger.error("%s", message)
        if damage:
            return Unavailable(f"{self.name} is damaged; the log of the service says what to do.")
        return Unavailable(f"{self.name} {why(str(error))}.", retry_after_seconds=1.0)

    def remove(self) -> None:
        """Deletes it, with its log. Raises OSError."""
        remove(self.path)

    def _create(self) -> None:
        new = self.path.with_name(f".{secrets.token_hex(8)}.new")
        self.remove()  # a log that is left of a former file would be read into this one
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(new)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")  # writes the header: from here on it is not empty
            os.replace(new, self.path)
        finally:
            new.unlink(missing_ok=True)

    def _look_through(self) -> None:
        try:
            with closing(sqlite3.connect(self.path, timeout=0)) as connection:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                return  # whoever opens it in earnest waits, or says what is the matter
            found = str(error)
        if found != "ok":
            raise self.damaged(f"it is damaged ({found})")


def remove(path: Path) -> None:
    """Deletes a file with its log. Raises OSError."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def is_damage(error: object) -> bool:
    """Whether an error of SQLite means that the file holds something else than it should."""
    return isinstance(error, sqlite3.Error) and _code(error) in _DAMAGE


def why(text: str) -> str:
    """What a failure's text means, as the predicate of a sentence."""
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
    """The primary one; 0 of an error that is Python's."""
    with suppress(AttributeError):
        return error.sqlite_errorcode & 0xFF
    return 0
