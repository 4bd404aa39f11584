"""Deletes what is older than the retention, in small transactions that let writers pass between them."""

from __future__ import annotations

import asyncio
import logging
import time

import sqlalchemy as sa

from genaifactory_common.database import uninterrupted
from genaifactory_common.errors import FactoryError
from genaifactory_monitor.database import Database
from genaifactory_monitor.metrics import SWEPT
from genaifactory_monitor.releases import HOUR_US
from genaifactory_monitor.schema import (
    drift_reports,
    feedback,
    interactions,
    release_arm_sums,
    release_hours,
    release_sums,
)
from genaifactory_monitor.settings import Retention

logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400


async def sweep_forever(database: Database, retention: Retention) -> None:
    """Sweeps at an interval; after an error of the database, again at the next turn."""
    while True:
        before_us = int((time.time() - retention.days * _DAY_SECONDS) * 1_000_000)
        try:
            await sweep(database, before_us, batch=retention.batch)
        except FactoryError as error:
            logger.warning("could not delete old records: %s", error.message)
        await asyncio.sleep(retention.sweep_interval_seconds)


async def sweep(database: Database, before_us: int, *, batch: int) -> int:
    """Deletes interactions that began before `before_us`, with their feedback and their hours' sums by release, and
    the reports of drift checks on windows that ended before it.

    Feedback of that time without an interaction is deleted too.

    Returns the number of interactions deleted. Raises Unavailable; what was deleted until then stays deleted.
    """
    deleted = 0
    while count := await _sweep_interactions(database, before_us, batch):
        deleted += count
        SWEPT.inc(count)
    while await _sweep_orphans(database, before_us, batch):
        pass
    for sums in (release_arm_sums, release_sums, release_hours):
        while await _sweep_rows(database, sums, sums.c.hour_us <= before_us - HOUR_US, batch):
            pass
    while await _sweep_rows(database, drift_reports, drift_reports.c.end_us < before_us, batch):
        pass
    if deleted:
        logger.info("deleted %d interactions that are older than the retention", deleted)
    return deleted


@uninterrupted
async def _sweep_interactions(database: Database, before_us: int, batch: int) -> int:
    old = (
        sa.select(interactions.c.tenant, interactions.c.request_id)
        .where(interactions.c.start_time_us < before_us)
        .order_by(interactions.c.start_time_us)
        .limit(batch)
    )
    async with database.writing() as connection:
        if not await database.alone(connection):
            return 0
        keys = [tuple(row) for row in await connection.execute(old)]
        if keys:
            await connection.execute(
                sa.delete(feedback).where(sa.tuple_(feedback.c.tenant, feedback.c.request_id).in_(keys))
            )
            await connection.execute(
                sa.delete(interactions).where(sa.tuple_(interactions.c.tenant, interactions.c.request_id).in_(keys))
            )
    return len(keys)


@uninterrupted
async def _sweep_orphans(database: Database, before_us: int, batch: int) -> int:
    belongs = sa.exists().where(
        interactions.c.tenant == feedback.c.tenant, interactions.c.request_id == feedback.c.request_id
    )
    orphans = (
        sa.select(feedback.c.tenant, feedback.c.feedback_id)
        .where(feedback.c.time_us < before_us, ~belongs)
        .limit(batch)
    )
    async with database.writing() as connection:
        if not await database.alone(connection):
            return 0
        keys = [tuple(row) for row in await connection.execute(orphans)]
        if keys:
            await connection.execute(
                sa.delete(feedback).where(sa.tuple_(feedback.c.tenant, feedback.c.feedback_id).in_(keys))
            )
    return len(keys)


@uninterrupted
async def _sweep_rows(database: Database, table: sa.Table, old: sa.ColumnElement[bool], batch: int) -> int:
    key = list(table.primary_key)
    chosen = sa.select(*key).where(old).limit(batch)
    async with database.writing() as connection:
        if not await database.alone(connection):
            return 0
        keys = [tuple(row) for row in await connection.execute(chosen)]
        if keys:
            await connection.execute(sa.delete(table).where(sa.tuple_(*key).in_(keys)))
    return len(keys)
