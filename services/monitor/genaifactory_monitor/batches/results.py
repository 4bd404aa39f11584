"""Leases the lines of batches to workers, and stores one result for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_common import batch_lines
from genaifactory_common.database import uninterrupted
from genaifactory_monitor.batches import store
from genaifactory_monitor.batches.tables import batches, lines
from genaifactory_monitor.database import Database
from genaifactory_monitor.schema import interactions

# As a literal, so that both databases use the index of open lines.
OPEN = lines.c.outcome == sa.literal_column("''")
# Batches that are looked at for one claim: the lines of the first ones may all be leased.
_LOOKED_AT = 20
# The bodies of one claim stay below channels.MAX_MESSAGE_BYTES, with one line more.
_CLAIM_BYTES = 8 << 20


@dataclass(frozen=True)
class Result:
    """The outcome of a line."""

    batch_id: str
    number: int
    line: bytes
    """A line of an output file, without a line feed."""
    failed: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cost_micros: int = 0
    currency: str = ""


@uninterrupted
async def claim(
    database: Database, worker: str, lease_us: int, limit: int, except_tenants: Sequence[str], now_us: int
) -> tuple[sa.Row[Any], Sequence[batches_pb2.Line]] | None:
    """Leases at most `limit` lines of the batch that waited longest; None: there are none. Renews the worker's leases.

    Raises Unavailable.
    """
    own = sa.and_(lines.c.worker == worker, lines.c.worker != sa.literal_column("''"))
    waiting = (
        sa.select(batches.c.batch_id)
        .where(batches.c.status == "in_progress", batches.c.expire_time_us > now_us)
        .where(batches.c.tenant.not_in(list(except_tenants)))
        .order_by(batches.c.lease_time_us)
        .limit(_LOOKED_AT)
    )
    until_us = now_us + lease_us
    async with database.writing() as connection:
        await connection.execute(sa.update(lines).where(own).values(lease_time_us=until_us))
        for batch_id in (await connection.scalars(waiting)).all() if limit else ():
            # Locked: two claims would each begin what is left of its max_cost. One that is locked is another's turn.
            of_batch = (batches.c.batch_id == batch_id, batches.c.status == "in_progress")
            locked = sa.select(batches).where(*of_batch).with_for_update(skip_locked=True)
            batch = (await connection.execute(locked)).one_or_none()
            if batch is None:
                continue
            allowed = min(limit, await _affordable(connection, batch, limit, now_us))
            found = await _free(connection, batch.batch_id, allowed, now_us) if allowed else ()
            if found:
                chosen = (lines.c.batch_id == batch.batch_id, lines.c.number.in_([line.number for line in found]))
                leased = {"worker": worker, "lease_time_us": until_us}
                await connection.execute(sa.update(lines).where(*chosen).values(leased))
            await connection.execute(sa.update(batches).where(*of_batch).values(lease_time_us=now_us))
            if found:
                return batch, await _with_attempts(connection, batch, found)
    return None


async def _with_attempts(
    connection: AsyncConnection, batch: sa.Row[Any], found: Sequence[sa.Row[Any]]
) -> list[batches_pb2.Line]:
    """The lines, with the attempts that failed before. One whose worker died while the answer was being written may
    have left a record of a cancelled request: its next answer needs a record of its own."""
    ids = {batch_lines.request_id(batch.batch_id, line.number, line.attempts): line for line in found if line.worker}
    cancelled = sa.select(interactions.c.request_id).where(
        interactions.c.tenant == batch.tenant,
        interactions.c.request_id.in_(ids),
        interactions.c.outcome.in_(("cancelled", "failed")),
    )
    more = {ids[each].number for each in await connection.scalars(cancelled)} if ids else set()
    if more:
        again = (lines.c.batch_id == batch.batch_id, lines.c.number.in_(more))
        await connection.execute(sa.update(lines).where(*again).values(attempts=lines.c.attempts + 1))
    return [
        batches_pb2.Line(
            batch_id=batch.batch_id,
            number=line.number,
            custom_id=line.custom_id,
            body=line.body,
            attempts=line.attempts + (line.number in more),
        )
        for line in found
    ]


async def _free(connection: AsyncConnection, batch_id: str, limit: int, now_us: int) -> Sequence[sa.Row[Any]]:
    """Lines that nobody answers, locked: at least one, if there is one, and no more than one message holds."""
    sizes = (
        sa.select(lines.c.number, sa.func.length(lines.c.body))
        .where(lines.c.batch_id == batch_id, OPEN, lines.c.lease_time_us < now_us)
        .order_by(lines.c.number)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    numbers: list[int] = []
    total = 0
    for number, size in (await connection.execute(sizes)).all():
        total += size
        if numbers and total > _CLAIM_BYTES:
            break
        numbers.append(number)
    columns: tuple[Any, ...] = (lines.c.number, lines.c.custom_id, lines.c.body, lines.c.attempts, lines.c.worker)
    chosen = sa.select(*columns).where(lines.c.batch_id == batch_id, lines.c.number.in_(numbers))
    return (await connection.execute(chosen.order_by(lines.c.number))).all()


async def _affordable(connection: AsyncConnection, batch: sa.Row[Any], limit: int, now_us: int) -> int:
    """How many more lines may begin so that the batch costs no more than its bound, if each costs the mean so far.

    A batch that may begin none while none is being answered is closed.
    """
    if batch.max_cost_micros is None:
        return limit
    running = sa.select(sa.func.count()).where(
        lines.c.batch_id == batch.batch_id, OPEN, lines.c.worker != "", lines.c.lease_time_us >= now_us
    )
    in_flight: int = await connection.scalar(running) or 0
    left, done = batch.max_cost_micros - batch.cost_micros, batch.completed + batch.failed
    # While nothing is known of what a line costs, one at a time.
    allowed = max(0, 1 - in_flight)
    if batch.cost_micros:
        allowed = max(0, left * done // batch.cost_micros - in_flight)
    if not allowed and not in_flight:
        await store.close(connection, batch.batch_id, store.BUDGET, now_us)
    return allowed


@uninterrupted
async def add(database: Database, result: Result, now_us: int) -> bool:
    """Stores a line's result, and ends its batch with the last one; False: the line has a result. Raises
    Unavailable."""
    async with database.writing() as connection:
        if not await _settle(connection, result):
            return False
        column = batches.c.failed if result.failed else batches.c.completed
        sums = ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "cost_micros")
        values: dict[Any, Any] = {column: column + 1}
        values |= {batches.c[name]: batches.c[name] + getattr(result, name) for name in sums}
        if result.currency:
            values[batches.c.currency] = result.currency
        await connection.execute(sa.update(batches).where(batches.c.batch_id == result.batch_id).values(values))
        await store.end_if_done(connection, result.batch_id, now_us)
    return True


async def _settle(connection: AsyncConnection, result: Result) -> bool:
    """Gives an open line its result; False: it has one."""
    values = {"outcome": "failed" if result.failed else "answered", "result": result.line, "body": b"", "worker": ""}
    of_line = (lines.c.batch_id == result.batch_id, lines.c.number == result.number, OPEN)
    return bool((await connection.execute(sa.update(lines).where(*of_line).values(values))).rowcount)


async def give_up(connection: AsyncConnection, batch_id: str, results: Sequence[Result], now_us: int) -> None:
    """Gives open lines of a closing batch their errors, and ends it with the last one. The caller holds the lines."""
    if results:
        of_line = (lines.c.batch_id == batch_id, lines.c.number == sa.bindparam("of_number"))
        statement = sa.update(lines).where(*of_line).values(outcome="failed", body=b"", worker="")
        changed = [{"of_number": result.number, "result": result.line} for result in results]
        await connection.execute(statement.values(result=sa.bindparam("result")), changed)
    values = {"failed": batches.c.failed + len(results)}
    await connection.execute(sa.update(batches).where(batches.c.batch_id == batch_id).values(values))
    await store.end_if_done(connection, batch_id, now_us)


@uninterrupted
async def release(database: Database, worker: str, batch_id: str, number: int, *, attempts: int, until_us: int) -> None:
    """Gives up a worker's lease of a line, which is not leased again before `until_us`. Raises Unavailable."""
    of_line = (lines.c.batch_id == batch_id, lines.c.number == number, lines.c.worker == worker, OPEN)
    values = {"worker": "", "attempts": attempts, "lease_time_us": until_us}
    async with database.writing() as connection:
        await connection.execute(sa.update(lines).where(*of_line).values(values))
