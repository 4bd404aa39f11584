"""Ends batches that were cancelled, expired or closed, and deletes what is older than its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from genaifactory_common import batch_lines
from genaifactory_common.database import uninterrupted
from genaifactory_common.errors import FactoryError
from genaifactory_monitor import metrics
from genaifactory_monitor.batches import files, results, store
from genaifactory_monitor.batches.files import DAY_SECONDS, OPEN_STATUSES, SECOND_US
from genaifactory_monitor.batches.results import OPEN, Result
from genaifactory_monitor.batches.tables import batches, lines
from genaifactory_monitor.batches.tables import files as files_table
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import clock_us
from genaifactory_monitor.settings import Batches as Bounds

logger = logging.getLogger(__name__)

_PAGE = 200
_UNFINISHED_SECONDS = 3600
_MESSAGES = {
    store.CANCELLED: "The batch was cancelled before this request was begun.",
    store.EXPIRED: "The batch's time ended before this request could be answered; send it in a new batch.",
    store.BUDGET: "The batch reached its max_cost before this request; send it in a new batch.",
    store.FAILED: "The batch failed before this request was begun; its errors say why.",
}


class Upkeep:
    """The work beside the calls."""

    def __init__(self, database: Database, bounds: Bounds) -> None:
        self._database = database
        self._bounds = bounds
        self._due = asyncio.Event()

    def soon(self) -> None:
        """A batch is to be ended: does not wait for the next turn."""
        self._due.set()

    async def forever(self) -> None:
        """Works at an interval; after an error of the database, again at the next turn."""
        while True:
            try:
                now_us = clock_us()
                await end_all(self._database, now_us)
                await sweep(self._database, self._bounds, now_us)
                await _count(self._database, now_us)
            except FactoryError as error:
                logger.warning("could not end batches or delete old files: %s", error.message)
            try:
                async with asyncio.timeout(self._bounds.upkeep_seconds):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()


async def end_all(database: Database, now_us: int) -> None:
    """Closes batches whose time has ended, and gives up the lines of closing ones that nobody answers. Raises
    Unavailable."""
    await _expire(database, now_us)
    for batch_id in await _closing(database):
        while await _give_up(database, batch_id, now_us):
            pass


@uninterrupted
async def _expire(database: Database, now_us: int) -> None:
    late = batches.c.expire_time_us <= now_us
    async with database.writing() as connection:
        if not await database.alone(connection):
            return
        for condition, status in ((batches.c.closing == store.CANCELLED, "cancelled"), (late, "expired")):
            unbegun = (
                sa.select(batches.c.batch_id)
                .where(condition, batches.c.start_time_us.is_(None), batches.c.status.in_(OPEN_STATUSES))
                .with_for_update(skip_locked=True)  # one that is begun at this moment is not discarded
            )
            if found := (await connection.scalars(unbegun)).all():
                await store.discard(connection, found, status, now_us)
        expired = sa.select(batches.c.batch_id).where(late, batches.c.status == "in_progress")
        for batch_id in (await connection.scalars(expired)).all():
            await store.close(connection, batch_id, store.EXPIRED, now_us)


@uninterrupted
async def _closing(database: Database) -> Sequence[str]:
    async with database.reading() as connection:
        closing = sa.select(batches.c.batch_id).where(
            batches.c.status.in_(("cancelling", "finalizing")),
            batches.c.start_time_us.is_not(None),  # others are discarded, without errors for their lines
        )
        return (await connection.scalars(closing)).all()


@uninterrupted
async def _give_up(database: Database, batch_id: str, now_us: int) -> bool:
    """Gives up a page of lines; False: no more are free."""
    async with database.writing() as connection:
        if not await database.alone(connection):
            return False
        why = await connection.scalar(sa.select(batches.c.closing).where(batches.c.batch_id == batch_id))
        # Without those that are being answered: their results are still to come, or their leases to end.
        free = sa.or_(lines.c.worker == "", lines.c.lease_time_us < now_us)
        page = sa.select(lines.c.number, lines.c.custom_id).where(lines.c.batch_id == batch_id, OPEN, free)
        found = (await connection.execute(page.order_by(lines.c.number).limit(_PAGE).with_for_update())).all()
        error = batch_lines.error(why or "", _MESSAGES.get(why or "", ""))
        given_up = [
            Result(batch_id, number, batch_lines.result(batch_id, number, custom_id, error=error), failed=True)
            for number, custom_id in found
        ]
        await results.give_up(connection, batch_id, given_up, now_us)
    metrics.BATCH_LINES.labels("given_up").inc(len(found))
    return len(found) == _PAGE


async def sweep(database: Database, bounds: Bounds, now_us: int) -> None:
    """Deletes files and batches whose time has ended, and files that were not finished within an hour. Raises
    Unavailable."""
    while await _sweep_file(database, now_us):
        pass
    while await _sweep_batch(database, now_us - bounds.days * DAY_SECONDS * SECOND_US):
        pass


@uninterrupted
async def _sweep_file(database: Database, now_us: int) -> bool:
    using = sa.exists().where(batches.c.input_file_id == files_table.c.file_id, batches.c.status.in_(OPEN_STATUSES))
    abandoned = sa.and_(
        ~files_table.c.finished, files_table.c.create_time_us < now_us - _UNFINISHED_SECONDS * SECOND_US
    )
    old = sa.select(files_table.c.file_id).where(sa.or_(files_table.c.expire_time_us <= now_us, abandoned), ~using)
    async with database.writing() as connection:
        if not await database.alone(connection):
            return False
        file_id = await connection.scalar(old.limit(1))
        if file_id is not None:
            await files.erase(connection, file_id)
    return file_id is not None


@uninterrupted
async def _sweep_batch(database: Database, before_us: int) -> bool:
    old = sa.select(batches.c.batch_id).where(
        batches.c.create_time_us < before_us, batches.c.status.not_in(OPEN_STATUSES)
    )
    async with database.writing() as connection:
        if not await database.alone(connection):
            return False
        batch_id = await connection.scalar(old.limit(1))
        if batch_id is None:
            return False
        # A file of its results that is kept for longer needs its lines.
        kept = sa.select(files_table.c.outcome).where(files_table.c.batch_id == batch_id)
        gone = lines.c.outcome.not_in(kept)
        await connection.execute(sa.delete(lines).where(lines.c.batch_id == batch_id, gone))
        await connection.execute(sa.delete(batches).where(batches.c.batch_id == batch_id))
    return True


@uninterrupted
async def _count(database: Database, now_us: int) -> None:
    columns: tuple[Any, ...] = (sa.func.count(), sa.func.min(batches.c.create_time_us))
    async with database.reading() as connection:
        opened = sa.select(*columns).where(batches.c.status.in_(OPEN_STATUSES))
        count, oldest_us = (await connection.execute(opened)).one()
    metrics.OPEN_BATCHES.set(count)
    metrics.OLDEST_BATCH.set(0 if oldest_us is None else (now_us - oldest_us) / SECOND_US)
