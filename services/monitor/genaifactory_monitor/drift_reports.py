"""Stores the reports of drift checks, each window once, with the verdict that follows from the windows before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from genaifactory.monitor.v1.monitor_pb2 import (
    DRIFT_VERDICT_ALARM,
    DRIFT_VERDICT_NONE,
    DRIFT_VERDICT_WARNING,
    DriftReport,
    DriftVerdict,
)
from genaifactory_common.database import insert, uninterrupted
from genaifactory_common.errors import FactoryError
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import microseconds
from genaifactory_monitor.metrics import DRIFT
from genaifactory_monitor.records import DriftFilter, Position
from genaifactory_monitor.schema import drift_reports as table

logger = logging.getLogger(__name__)

_SHOW_SECONDS = 60.0
_SHOWN = {DRIFT_VERDICT_NONE: 0, DRIFT_VERDICT_WARNING: 1, DRIFT_VERDICT_ALARM: 2}
_place = sa.tuple_(table.c.end_us, table.c.report_id)
_NEWEST_FIRST = (table.c.end_us.desc(), table.c.report_id.desc())


@dataclass(frozen=True)
class Page:
    """Reports, those on the latest windows first, and the start of the next page."""

    reports: Sequence[DriftReport]
    next: Position | None
    """None: this is the last page."""


def verdict(*, drifted: bool, windows: int, needed: int) -> DriftVerdict.ValueType:
    """What follows. drifted: whether this window has; windows: how many of the last have, this one included."""
    if windows >= needed:
        return DRIFT_VERDICT_ALARM
    return DRIFT_VERDICT_WARNING if drifted else DRIFT_VERDICT_NONE


@uninterrupted
async def record(database: Database, report: DriftReport) -> tuple[DriftReport, bool]:
    """Stores a report in place of the one with its id; returns it with its verdict, and whether there was one.

    Windows that end later do not count, and keep the verdicts that they have. Raises Unavailable.
    """
    own = any(signal.drifted for signal in report.signals)
    place = (microseconds(report.current.end_time), report.report_id)
    same = (table.c.tenant == report.tenant) & (table.c.report_id == report.report_id)
    before = (
        sa.select(table.c.drifted)
        .where(table.c.tenant == report.tenant, table.c.route == report.route, ~same, _place < sa.tuple_(*place))
        .order_by(*_NEWEST_FIRST)
        .limit(report.windows - 1)
    )
    stored = DriftReport()
    stored.CopyFrom(report)
    async with database.writing() as connection:
        replaced = bool(await connection.scalar(sa.select(sa.exists().where(same))))
        stored.drifted = own + sum((await connection.execute(before)).scalars())
        stored.verdict = verdict(drifted=own, windows=stored.drifted, needed=report.needed)
        row = {"route": stored.route, "end_us": place[0], "drifted": own, "report": stored.SerializeToString()}
        statement = insert(table, into_postgresql=database.postgresql).values(
            tenant=stored.tenant, report_id=stored.report_id, **row
        )
        await connection.execute(
            statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=row),
        )
    return stored, replaced


async def show_forever(database: Database, most: int) -> None:
    """Shows the latest verdicts as metrics every minute: each replica those of all, and after a restart at once.

    most: routes of tenants, those with the latest windows.
    """
    shown: set[tuple[str, str]] = set()
    while True:
        try:
            shown = await show(database, most, shown)
        except FactoryError as error:
            logger.warning("could not read the verdicts on drift: %s", error.message)
        await asyncio.sleep(_SHOW_SECONDS)


async def show(database: Database, most: int, shown: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Sets the metric of each tenant and route with a report, and removes those in `shown` that have none any more.

    Returns what is shown now. Raises Unavailable.
    """
    found = {(each.tenant, each.route): each.verdict for each in await _latest(database, most)}
    for labels in shown - found.keys():
        DRIFT.remove(*labels)
    for labels, each in found.items():
        DRIFT.labels(*labels).set(_SHOWN[each])
    return set(found)


@uninterrupted
async def _latest(database: Database, most: int) -> list[DriftReport]:
    """The report on the latest window of each tenant and route."""
    number = sa.func.row_number().over(partition_by=(table.c.tenant, table.c.route), order_by=_NEWEST_FIRST)
    ranked = sa.select(table.c.end_us, table.c.report, number.label("number")).subquery()
    statement = sa.select(ranked.c.report).where(ranked.c.number == 1).order_by(ranked.c.end_us.desc()).limit(most)
    async with database.reading() as connection:
        return [DriftReport.FromString(report) for report in (await connection.execute(statement)).scalars()]


@uninterrupted
async def page(database: Database, filter_: DriftFilter, *, after: Position | None = None, limit: int) -> Page:
    """Up to `limit` reports after `after`. Raises Unavailable."""
    conditions: list[Any] = [table.c.tenant == filter_.tenant]
    if filter_.route is not None:
        conditions.append(table.c.route == filter_.route)
    if filter_.ended_since_us is not None:
        conditions.append(table.c.end_us >= filter_.ended_since_us)
    if filter_.ended_before_us is not None:
        conditions.append(table.c.end_us < filter_.ended_before_us)
    if after is not None:
        conditions.append(_place < sa.tuple_(*after))
    columns = (table.c.end_us, table.c.report_id, table.c.report)
    statement = sa.select(*columns).where(*conditions).order_by(*_NEWEST_FIRST).limit(limit + 1)
    async with database.reading() as connection:
        rows = (await connection.execute(statement)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        [DriftReport.FromString(row.report) for row in rows[:limit]],
        None if last is None else Position(last.end_us, last.report_id),
    )
