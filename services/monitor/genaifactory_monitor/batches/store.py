"""Stores batches: made, listed and cancelled by their owners, checked under a lease by a worker, and ended once."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory_common import batch_lines
from genaifactory_common.database import insert, uninterrupted
from genaifactory_common.errors import Conflict, InvalidArgument, NotFound, RateLimited
from genaifactory_monitor.batches import files
from genaifactory_monitor.batches.files import OPEN_STATUSES, SECOND_US, Owner
from genaifactory_monitor.batches.tables import batches, lines
from genaifactory_monitor.batches.tables import files as files_table
from genaifactory_monitor.database import Database
from genaifactory_monitor.settings import Batches as Bounds

CANCELLED, EXPIRED, BUDGET, FAILED = "batch_cancelled", "batch_expired", "budget_exceeded", "batch_failed"
"""Why lines are given up; the codes of their errors."""
_ENDS = {"": "completed", CANCELLED: "cancelled", EXPIRED: "expired", BUDGET: "completed", FAILED: "failed"}
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_SHOWN = 64
_FILES = {"answered": ("output_file_id", "completed", "output"), "failed": ("error_file_id", "failed", "errors")}


@uninterrupted
async def create(
    database: Database,
    owner: Owner,
    key_id: str,
    *,
    input_file_id: str,
    endpoint: str,
    metadata: Mapping[str, str],
    max_cost_micros: int | None,
    output_lifetime_seconds: int,
    bounds: Bounds,
    now_us: int,
) -> sa.Row[Any]:
    """Begins a batch. Raises InvalidArgument, NotFound, RateLimited, Unavailable."""
    if endpoint not in batch_lines.ENDPOINTS:
        raise InvalidArgument(f"'endpoint' must be one of: {', '.join(batch_lines.ENDPOINTS)}.", field="endpoint")
    _check_metadata(metadata)
    if max_cost_micros is not None and max_cost_micros <= 0:
        raise InvalidArgument("'max_cost' must be more than 0.", field="max_cost")
    row: dict[str, Any] = dict.fromkeys(
        (column.name for column in batches.columns if isinstance(column.type, sa.BigInteger)), 0
    )
    row |= dict.fromkeys(("start_time_us", "close_time_us", "cancel_time_us", "end_time_us"))
    row |= dict.fromkeys(("closing", "model", "output_file_id", "error_file_id", "currency", "worker"), "")
    row |= {
        "batch_id": f"batch_{uuid.uuid4().hex}",
        "tenant": owner.tenant,
        "principal": owner.principal,
        "key_id": key_id,
        "endpoint": endpoint,
        "input_file_id": input_file_id,
        "status": "validating",
        "metadata": dict(metadata),
        "errors": [],
        "max_cost_micros": max_cost_micros,
        "output_lifetime_seconds": files.lifetime(output_lifetime_seconds, "output_lifetime_seconds", bounds),
        "create_time_us": now_us,
        "expire_time_us": now_us + round(bounds.window_seconds * SECOND_US),
    }
    opened = sa.select(sa.func.count()).where(batches.c.tenant == owner.tenant, batches.c.status.in_(OPEN_STATUSES))
    async with database.writing() as connection:
        file = await files.finished(connection, owner, input_file_id)
        if file.purpose != batch_lines.PURPOSE:
            raise InvalidArgument(
                f"The file's purpose is '{file.purpose}'; a batch needs one of the purpose '{batch_lines.PURPOSE}'.",
                field="input_file_id",
            )
        if (await connection.scalar(opened) or 0) >= bounds.max_tenant_batches:
            raise RateLimited(
                f"This tenant has {bounds.max_tenant_batches} batches that have not ended, the most at once; wait for "
                "one to end, or cancel one."
            )
        await files.require_room(
            connection, owner.tenant, bounds, more_files=files.RESULT_FILES, more_bytes=file.size_bytes
        )
        await connection.execute(sa.insert(batches).values(row))
        return await _owned(connection, owner, row["batch_id"])


@uninterrupted
async def find(database: Database, owner: Owner, batch_id: str) -> sa.Row[Any]:
    """A batch. Raises NotFound, Unavailable."""
    async with database.reading() as connection:
        return await _owned(connection, owner, batch_id)


@uninterrupted
async def page(database: Database, owner: Owner, *, limit: int, after: str) -> tuple[Sequence[sa.Row[Any]], bool]:
    """Batches, newest first, and whether more follow. Raises NotFound, Unavailable."""
    statement = sa.select(batches).where(batches.c.tenant == owner.tenant, batches.c.principal == owner.principal)
    order = (batches.c.create_time_us, batches.c.batch_id)
    async with database.reading() as connection:
        if after:
            last = await _owned(connection, owner, after)
            statement = statement.where(sa.tuple_(*order) < sa.tuple_(last.create_time_us, last.batch_id))
        statement = statement.order_by(*(column.desc() for column in order)).limit(limit + 1)
        found = (await connection.execute(statement)).all()
    return found[:limit], len(found) > limit


@uninterrupted
async def cancel(database: Database, owner: Owner, batch_id: str, now_us: int) -> sa.Row[Any]:
    """Cancels a batch; again, it does nothing. Raises NotFound, Conflict for one that has ended, Unavailable."""
    async with database.writing() as connection:
        batch = await _owned(connection, owner, batch_id, lock=True)
        if batch.status not in OPEN_STATUSES:
            raise Conflict(f"The batch is {batch.status}; it cannot be cancelled any more.", field="batch_id")
        if not batch.closing:
            values = {"status": "cancelling", "closing": CANCELLED, "cancel_time_us": now_us}
            await connection.execute(_of(sa.update(batches), batch_id).values(values))
        return await _owned(connection, owner, batch_id)


@uninterrupted
async def claim(database: Database, worker: str, lease_us: int, now_us: int) -> sa.Row[Any] | None:
    """Leases the oldest batch whose file nobody checks; None: there is none. Raises Unavailable."""
    statement = (
        sa.select(batches.c.batch_id)
        .where(batches.c.status == "validating", batches.c.lease_time_us < now_us)
        .order_by(batches.c.create_time_us)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    async with database.writing() as connection:
        batch_id = await connection.scalar(statement)
        if batch_id is None:
            return None
        leased = {"worker": worker, "lease_time_us": now_us + lease_us}
        await connection.execute(_of(sa.update(batches), batch_id).values(leased))
        return (await connection.execute(_of(sa.select(batches), batch_id))).one()


@uninterrupted
async def add_lines(
    database: Database, worker: str, batch_id: str, rows: Sequence[Mapping[str, Any]], lease_us: int, now_us: int
) -> bool:
    """Stores lines; False: the batch is no longer leased to the worker. Raises Unavailable."""
    async with database.writing() as connection:
        if await _leased(connection, worker, batch_id) is None:
            return False
        if rows:
            statement = insert(lines, into_postgresql=database.postgresql).on_conflict_do_nothing()
            await connection.execute(statement, [_line(batch_id, row) for row in rows])
        renewed = {"lease_time_us": now_us + lease_us}
        await connection.execute(_of(sa.update(batches), batch_id).values(renewed))
    return True


@uninterrupted
async def finish_check(
    database: Database, worker: str, batch_id: str, model: str, errors: Sequence[Mapping[str, Any]], now_us: int
) -> None:
    """Begins the answering of a leased batch or, with errors, ends it. Raises Unavailable."""
    async with database.writing() as connection:
        if await _leased(connection, worker, batch_id) is None:
            return
        if errors:
            await discard(connection, [batch_id], "failed", now_us, errors=list(errors))
            return
        total = await connection.scalar(sa.select(sa.func.count()).where(lines.c.batch_id == batch_id))
        values = {"status": "in_progress", "model": model, "total": total, "start_time_us": now_us}
        values |= {"worker": "", "lease_time_us": 0}
        await connection.execute(_of(sa.update(batches), batch_id).values(values))


@uninterrupted
async def fail(database: Database, batch_id: str, error: Mapping[str, Any], now_us: int) -> None:
    """Ends a batch that cannot go on: at once while it is checked, else when its lines are given up. Raises
    Unavailable."""
    async with database.writing() as connection:
        found = _of(sa.select(batches), batch_id).with_for_update()
        batch = (await connection.execute(found)).one_or_none()
        if batch is None or batch.status not in OPEN_STATUSES or batch.closing:
            return
        if batch.status == "validating":
            await discard(connection, [batch_id], "failed", now_us, errors=[error])
        else:
            await close(connection, batch_id, FAILED, now_us, errors=[error])


async def close(connection: AsyncConnection, batch_id: str, why: str, now_us: int, **others: Any) -> None:
    """Lets no more lines of the batch begin; upkeep gives them up, with `why` as the code of their errors.

    A batch that was cancelled or has ended meanwhile stays as it is.
    """
    values = {"status": "finalizing", "closing": why, "close_time_us": now_us, **others}
    in_progress = _of(sa.update(batches), batch_id).where(batches.c.status == "in_progress")
    await connection.execute(in_progress.values(values))


async def discard(
    connection: AsyncConnection, batch_ids: Sequence[str], status: str, now_us: int, **others: Any
) -> None:
    """Ends batches of which no line was begun."""
    await connection.execute(sa.delete(lines).where(lines.c.batch_id.in_(batch_ids)))
    values = {"status": status, "end_time_us": now_us, "worker": "", **others}
    await connection.execute(sa.update(batches).where(batches.c.batch_id.in_(batch_ids)).values(values))


async def end_if_done(connection: AsyncConnection, batch_id: str, now_us: int) -> None:
    """Ends a batch all of whose lines have a result, and makes its files, within a transaction that holds its row."""
    batch = (await connection.execute(_of(sa.select(batches), batch_id).with_for_update())).one()
    if batch.completed + batch.failed < batch.total or batch.status not in OPEN_STATUSES:
        return
    values: dict[str, Any] = {"status": _ENDS[batch.closing], "end_time_us": now_us}
    expires_us = now_us + batch.output_lifetime_seconds * SECOND_US
    for outcome, (column, count, name) in _FILES.items():
        if not getattr(batch, count):
            continue
        size = sa.select(sa.func.sum(sa.func.length(lines.c.result) + 1)).where(
            lines.c.batch_id == batch_id, lines.c.outcome == outcome
        )
        owner, filename = Owner(batch.tenant, batch.principal), f"{batch_id}_{name}.jsonl"
        file = files.new_file(owner, filename, batch_lines.OUTPUT_PURPOSE, now_us, expires_us)
        file |= {"batch_id": batch_id, "outcome": outcome, "finished": True}
        await connection.execute(sa.insert(files_table).values(file | {"size_bytes": await connection.scalar(size)}))
        values[column] = file["file_id"]
    await connection.execute(_of(sa.update(batches), batch_id).values(values))


def _check_metadata(metadata: Mapping[str, str]) -> None:
    fits = len(metadata) <= _MAX_METADATA and all(
        1 <= len(key) <= _MAX_KEY and len(value) <= _MAX_VALUE and "\0" not in key + value
        for key, value in metadata.items()
    )
    if not fits:
        raise InvalidArgument(
            f"'metadata' may hold {_MAX_METADATA} pairs, with keys of 1 to {_MAX_KEY} characters and values of at most "
            f"{_MAX_VALUE}.",
            field="metadata",
        )


def _line(batch_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    new = {"batch_id": batch_id, "attempts": 0, "worker": "", "lease_time_us": 0, "outcome": "", "result": b""}
    return new | dict(row)


async def _leased(connection: AsyncConnection, worker: str, batch_id: str) -> sa.Row[Any] | None:
    """The batch, if the worker checks it. A lease that has ended counts while nobody else took it."""
    conditions: Iterable[Any] = (batches.c.worker == worker, batches.c.status == "validating", batches.c.closing == "")
    statement = _of(sa.select(batches), batch_id).where(*conditions).with_for_update()
    return (await connection.execute(statement)).one_or_none()


async def _owned(connection: AsyncConnection, owner: Owner, batch_id: str, *, lock: bool = False) -> sa.Row[Any]:
    no_batch = NotFound(f"There is no batch '{batch_id[:_SHOWN]}' of this key.", field="batch_id")
    if "\0" in batch_id:  # which PostgreSQL refuses
        raise no_batch
    statement = _of(sa.select(batches), batch_id).where(
        batches.c.tenant == owner.tenant, batches.c.principal == owner.principal
    )
    found = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
    if found is None:
        raise no_batch
    return found


def _of(statement: Any, batch_id: str) -> Any:
    return statement.where(batches.c.batch_id == batch_id)
