"""Stored conversations: bounded, erasable, and each visible to the caller who began it alone."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import Unavailable
from genaifactory_orchestrator import settings
from genaifactory_orchestrator.database import Database

_MIGRATIONS = (
    """
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
    CREATE INDEX messages_created ON messages (created_at)
    """,
)


@dataclass(frozen=True)
class Key:
    """Whose conversation, and which."""

    tenant: str
    principal: str
    name: str


@dataclass(frozen=True)
class History:
    """What a conversation held when a turn began."""

    number: int
    """Identifies this life of the conversation; an erased one does not come back under it."""
    messages: tuple[types_pb2.Message, ...]
    """Oldest first; the first is a person's."""


class Conversations:
    """The store. Turns of one conversation may overlap: each is added whole, in the order in which they end."""

    def __init__(self, path: Path, bounds: settings.Conversations) -> None:
        self._bounds = bounds
        # FULL: what was erased must not come back after a power cut.
        self._database = Database(path, _MIGRATIONS, synchronous="FULL")

    async def open(self) -> None:
        """Opens the file. Raises Unavailable."""
        await self._database.open()

    async def close(self) -> None:
        """Closes the file."""
        await self._database.close()

    async def begin(self, key: Key, *, limit: int) -> History:
        """The last `limit` messages, as the beginning of a turn; a conversation that is new begins empty."""
        now, bounds = time.time(), self._bounds
        try:
            return await self._database.run(lambda connection: _begin(connection, key, limit, now, bounds))
        except sqlite3.Error as error:
            raise Unavailable("The stored conversation cannot be read.") from error

    async def add_turn(self, history: History, messages: list[types_pb2.Message]) -> None:
        """Adds a turn at the end, whole or not at all; nothing if the conversation was erased since `begin`."""
        now, keep = time.time(), self._bounds.max_messages
        rows = [message.SerializeToString() for message in messages]
        try:
            await self._database.run(lambda connection: _add(connection, history.number, rows, now, keep))
        except sqlite3.Error as error:
            raise Unavailable("The conversation cannot be stored.") from error

    async def erase(self, key: Key) -> bool:
        """Forgets a conversation, in the file's bytes too. False: there was none."""
        try:
            existed = await self._database.run(lambda connection: _erase(connection, key))
            await self._database.truncate_log()
        except sqlite3.Error as error:
            raise Unavailable("The conversation cannot be erased now.") from error
        return existed

    async def forget_old(self) -> None:
        """Removes messages past their age and conversations that hold none."""
        before = time.time() - self._bounds.max_age_seconds
        await self._database.run(lambda connection: _forget(connection, before))


def _begin(connection: sqlite3.Connection, key: Key, limit: int, now: float, bounds: settings.Conversations) -> History:
    row = connection.execute(
        "SELECT id FROM conversations WHERE tenant = ? AND principal = ? AND name = ?",
        (key.tenant, key.principal, key.name),
    ).fetchone()
    if row is None:
        created = connection.execute(
            "INSERT INTO conversations (tenant, principal, name, updated_at) VALUES (?, ?, ?, ?) RETURNING id",
            (key.tenant, key.principal, key.name, now),
        ).fetchone()
        _drop_idlest(connection, key, bounds.max_per_principal)
        return History(int(created[0]), ())
    rows = connection.execute(
        "SELECT data FROM messages WHERE conversation = ? AND created_at >= ? ORDER BY number DESC LIMIT ?",
        (row[0], now - bounds.max_age_seconds, limit),
    ).fetchall()
    messages = [types_pb2.Message.FromString(data) for (data,) in reversed(rows)]
    # A cut may leave an answer without its question, or a tool's result without its call.
    first = next((i for i, message in enumerate(messages) if message.role == types_pb2.ROLE_USER), len(messages))
    return History(int(row[0]), tuple(messages[first:]))


def _drop_idlest(connection: sqlite3.Connection, key: Key, keep: int) -> None:
    _drop(
        connection,
        "SELECT id FROM conversations WHERE tenant = ? AND principal = ? ORDER BY updated_at DESC, id DESC "
        "LIMIT -1 OFFSET ?",
        (key.tenant, key.principal, keep),
    )


def _drop(connection: sqlite3.Connection, select: str, parameters: tuple[object, ...]) -> int:
    numbers = connection.execute(select, parameters).fetchall()
    connection.executemany("DELETE FROM messages WHERE conversation = ?", numbers)
    connection.executemany("DELETE FROM conversations WHERE id = ?", numbers)
    return len(numbers)


def _add(connection: sqlite3.Connection, conversation: int, rows: list[bytes], now: float, keep: int) -> None:
    known = connection.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (now, conversation))
    if known.rowcount == 0:
        return
    (last,) = connection.execute(
        "SELECT coalesce(max(number), 0) FROM messages WHERE conversation = ?", (conversation,)
    ).fetchone()
    connection.executemany(
        "INSERT INTO messages (conversation, number, created_at, data) VALUES (?, ?, ?, ?)",
        [(conversation, last + i, now, data) for i, data in enumerate(rows, start=1)],
    )
    connection.execute(
        "DELETE FROM messages WHERE conversation = ? AND number <= ?", (conversation, last + len(rows) - keep)
    )


def _erase(connection: sqlite3.Connection, key: Key) -> bool:
    select = "SELECT id FROM conversations WHERE tenant = ? AND principal = ? AND name = ?"
    return _drop(connection, select, (key.tenant, key.principal, key.name)) > 0


def _forget(connection: sqlite3.Connection, before: float) -> None:
    connection.execute("DELETE FROM messages WHERE created_at < ?", (before,))
    _drop(
        connection,
        "SELECT id FROM conversations WHERE updated_at < ? "
        "AND NOT EXISTS (SELECT 1 FROM messages WHERE conversation = conversations.id)",
        (before,),
    )
