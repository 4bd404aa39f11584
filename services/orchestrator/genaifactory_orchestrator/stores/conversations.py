"""Stored conversations: bounded, erasable, and each visible only to the caller who began it.

In PostgreSQL replicas share them. A transaction on one conversation locks its row before its messages, and one on
several skips locked rows, so there are no deadlocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.backoff import Backoff
from genaifactory_common.database import Database, Layout, insert, uninterrupted
from genaifactory_common.errors import OutOfSpace, Unavailable
from genaifactory_orchestrator.settings import Settings
from genaifactory_orchestrator.stores.conversations_schema import conversations, messages

logger = logging.getLogger(__name__)

_LAYOUT = Layout(
    service="orchestrator",
    name="The store of conversations",
    file_name="conversations.db",
    loss="the stored conversations",
    migrations=Path(__file__).parent / "migrations",
    version_table="orchestrator_alembic_version",
    migration_lock=0x6F726368,
    exclusive=True,
    secure_delete=True,  # erased content must not stay in the file
)
# Rows deleted in one transaction; turns can be written between these.
_BATCH = 500
_BACKOFF = Backoff(first_seconds=0.2, longest_seconds=2.0)


@dataclass(frozen=True)
class Key:
    """The owner and the name of a conversation."""

    tenant: str
    principal: str
    name: str


@dataclass(frozen=True)
class History:
    """The content of a conversation at the beginning of a turn."""

    number: int
    """Identifies the conversation until it is erased; never used again."""
    messages: tuple[types_pb2.Message, ...]
    """Oldest first; the first is the user's."""


class Conversations:
    """The store. Turns of one conversation may overlap: each is added as a whole, in the order of their ends."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = settings.conversations
        self._database = Database(_LAYOUT, data_dir=settings.data_dir, url=settings.database_url, store=settings.store)
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the store. PostgreSQL is retried until it is reachable; until then every use raises Unavailable.

        Raises Unavailable for a file that cannot be used, or that another process uses.
        """
        try:
            await self._database.open()
        except Unavailable:
            if not self._database.postgresql:
                raise
            self._opening = asyncio.create_task(self._open_later(), name="conversations-open")

    async def close(self) -> None:
        """Closes the store."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._database.close()

    @uninterrupted
    async def begin(self, key: Key, *, limit: int) -> History:
        """The last `limit` messages, at the beginning of a turn; creates a new conversation.

        Raises Unavailable.
        """
        now = time.time()
        async with self._database.writing() as connection:
            number = await connection.scalar(sa.select(conversations.c.id).where(*_is(key)))
            if number is None:
                number = await self._create(connection, key, now)
            rows = await connection.scalars(
                sa.select(messages.c.data)
                .where(messages.c.conversation == number)
                .where(messages.c.created_at >= now - self._bounds.max_age_seconds)
                .order_by(messages.c.number.desc())
                .limit(limit)
            )
            found = [types_pb2.Message.FromString(data) for data in rows][::-1]
        # The limit may separate an answer from its question, or a tool's result from its call.
        first = next((i for i, message in enumerate(found) if message.role == types_pb2.ROLE_USER), len(found))
        return History(number, tuple(found[first:]))

    async def add_turn(self, history: History, turn: Sequence[types_pb2.Message]) -> None:
        """Adds a turn at the end, atomically; nothing if the conversation was erased since `begin`.

        While the store is unreachable it is retried, for `retry_seconds` or half of the request's remaining time.
        Raises Unavailable.
        """
        now, failures = time.time(), 0
        rows = [message.SerializeToString() for message in turn]
        patience = self._bounds.retry_seconds
        if (remaining := channels.remaining_seconds()) is not None:
            patience = min(patience, remaining / 2)
        end = time.monotonic() + patience
        while True:
            try:
                await self._add(history.number, rows, now, failures > 0)
            except OutOfSpace:
                raise  # there will hardly be room within seconds
            except Unavailable:
                failures += 1
                pause_seconds = _BACKOFF.seconds(failures)
                if time.monotonic() + pause_seconds > end:
                    raise
            else:
                return
            await asyncio.sleep(pause_seconds)

    async def erase(self, key: Key) -> bool:
        """Erases a conversation, also from the file's bytes. False: there was none. Raises Unavailable."""
        existed = await self._erase(key)
        await self._database.truncate_log()
        return existed

    async def counts(self) -> list[tuple[str, int]]:
        """Tenants with their numbers of conversations, sorted. Raises Unavailable."""
        statement = (
            sa.select(conversations.c.tenant, sa.func.count()).group_by(conversations.c.tenant).order_by("tenant")
        )
        async with self._database.reading() as connection:
            return [(tenant, count) for tenant, count in await connection.execute(statement)]

    async def delete_old(self) -> None:
        """Deletes messages beyond the age limit, and conversations without messages. Raises Unavailable."""
        before = time.time() - self._bounds.max_age_seconds
        while await self._delete_messages(before) == _BATCH:
            pass
        while await self._delete_empty(before) == _BATCH:
            pass

    async def _open_later(self) -> None:
        try:
            await self._database.open_when_reachable()
        except Exception:  # nothing awaits this task; every use of the store still raises Unavailable
            logger.exception("the store of conversations cannot be opened")

    async def _create(self, connection: AsyncConnection, key: Key, now: float) -> int:
        statement = (
            insert(conversations, into_postgresql=self._database.postgresql)
            .values(**vars(key), updated_at=now)
            # Another replica may have created it a moment ago: then this statement returns its id.
            .on_conflict_do_update(index_elements=["tenant", "principal", "name"], set_={"name": key.name})
            .returning(conversations.c.id)
        )
        number = (await connection.execute(statement)).scalar_one()
        idlest = (
            sa.select(conversations.c.id)
            .where(conversations.c.tenant == key.tenant, conversations.c.principal == key.principal)
            .order_by(conversations.c.updated_at.desc(), conversations.c.id.desc())
            .offset(self._bounds.max_per_principal)
            .limit(_BATCH)
        )
        chosen = sa.select(conversations.c.id).where(conversations.c.id.in_(idlest)).with_for_update(skip_locked=True)
        await _drop(connection, chosen)
        return int(number)

    @uninterrupted
    async def _add(self, number: int, rows: list[bytes], now: float, again: bool) -> None:
        """again: an earlier try failed, perhaps after its COMMIT; a stored turn is recognised by its time and bytes."""
        of_it = messages.c.conversation == number
        async with self._database.writing() as connection:
            # The row stays locked: turns of other replicas wait, and number their messages after these.
            touched = await connection.execute(
                sa.update(conversations).where(conversations.c.id == number).values(updated_at=now)
            )
            if touched.rowcount == 0 or not rows:
                return
            if again and await connection.scalar(
                sa.select(sa.exists().where(of_it, messages.c.created_at == now, messages.c.data == rows[-1]))
            ):
                return
            last = (
                await connection.execute(sa.select(sa.func.coalesce(sa.func.max(messages.c.number), 0)).where(of_it))
            ).scalar_one()
            await connection.execute(
                sa.insert(messages),
                [
                    {"conversation": number, "number": last + i, "created_at": now, "data": data}
                    for i, data in enumerate(rows, start=1)
                ],
            )
            cut = last + len(rows) - self._bounds.max_messages
            await connection.execute(sa.delete(messages).where(of_it, messages.c.number <= cut))

    @uninterrupted
    async def _erase(self, key: Key) -> bool:
        async with self._database.writing() as connection:
            return await _drop(connection, sa.select(conversations.c.id).where(*_is(key)).with_for_update()) > 0

    @uninterrupted
    async def _delete_messages(self, before: float) -> int:
        old = (
            sa.select(messages.c.conversation, messages.c.number)
            .where(messages.c.created_at < before)
            .order_by(messages.c.created_at)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        async with self._database.writing() as connection:
            keys = [tuple(row) for row in await connection.execute(old)]
            if keys:
                await connection.execute(
                    sa.delete(messages).where(sa.tuple_(messages.c.conversation, messages.c.number).in_(keys))
                )
        return len(keys)

    @uninterrupted
    async def _delete_empty(self, before: float) -> int:
        holds_any = sa.exists().where(messages.c.conversation == conversations.c.id)
        empty = (
            sa.select(conversations.c.id)
            .where(conversations.c.updated_at < before, ~holds_any)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        async with self._database.writing() as connection:
            return await _drop(connection, empty)


def _is(key: Key) -> tuple[sa.ColumnElement[bool], ...]:
    columns = conversations.c
    return columns.tenant == key.tenant, columns.principal == key.principal, columns.name == key.name


async def _drop(connection: AsyncConnection, select: sa.Select[tuple[int]]) -> int:
    numbers = (await connection.scalars(select)).all()
    if numbers:
        await connection.execute(sa.delete(messages).where(messages.c.conversation.in_(numbers)))
        await connection.execute(sa.delete(conversations).where(conversations.c.id.in_(numbers)))
    return len(numbers)
