"""Adds up requests, tokens and cost by day, tenant, key, model and currency.

The sums are stored beside the interactions and kept longer. A part of a day is added up from its interactions, so any
period is exact as long as these are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.database import uninterrupted
from genaifactory_common.errors import TooLarge
from genaifactory_monitor.database import Database, adding_up
from genaifactory_monitor.message_dicts import microseconds
from genaifactory_monitor.records import Usage, UsageKey
from genaifactory_monitor.schema import interactions
from genaifactory_monitor.schema import usage as table

MAX_ROWS = 50_000
_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_prompt_tokens", "cost_micros")


async def add(connection: AsyncConnection, database: Database, stored: Iterable[monitor_pb2.Interaction]) -> None:
    """Adds new interactions to the sums, within the transaction that stores them."""
    sums: dict[UsageKey, Usage] = defaultdict(Usage)
    for item in stored:
        day = day_of(microseconds(item.start_time))
        sums[UsageKey(day, item.tenant, item.key_id, item.model, item.currency)] += Usage(
            requests=1,
            errors=int(item.outcome == monitor_pb2.OUTCOME_FAILED),
            prompt_tokens=item.usage.prompt_tokens,
            completion_tokens=item.usage.completion_tokens,
            cached_prompt_tokens=item.usage.cached_prompt_tokens,
            cost_micros=item.cost_micros,
        )
    rows = [key._asdict() | vars(sums[key]) for key in sorted(sums)]
    await connection.execute(adding_up(table, into_postgresql=database.postgresql), rows)


@uninterrupted
async def between(
    database: Database, tenant: str | None, start_us: int, end_us: int, *, key_id: str | None = None, now_us: int
) -> list[tuple[UsageKey, Usage]]:
    """The sums from `start_us` (inclusive) to `end_us` (exclusive), sorted by key.

    tenant: None for all of them. key_id: of one API key; None for all keys.

    Raises TooLarge beyond MAX_ROWS rows, Unavailable.
    """
    if end_us >= now_us:
        end_us = _ceiling(end_us)  # nothing is later than now: today is a whole day
    first, last = _ceiling(start_us), end_us // _DAY_US * _DAY_US
    sums: dict[UsageKey, Usage] = defaultdict(Usage)
    parts = [(start_us, first), (last, end_us)] if first <= end_us else [(start_us, end_us)]
    async with database.reading() as connection:
        if first < last:
            for key, value in await _rows(connection, _whole_days(tenant, key_id, first, last)):
                sums[key] += value
        for part_start, part_end in parts:
            if part_start < part_end:
                for key, value in await _rows(connection, _part(tenant, key_id, part_start, part_end)):
                    sums[key] += value
    return sorted(sums.items(), key=lambda item: item[0])


def day_of(moment_us: int) -> str:
    """The UTC day of a moment, YYYY-MM-DD."""
    return (_EPOCH + timedelta(microseconds=moment_us)).date().isoformat()


def _ceiling(moment_us: int) -> int:
    return -(-moment_us // _DAY_US) * _DAY_US


def _whole_days(tenant: str | None, key_id: str | None, start_us: int, end_us: int) -> sa.Select[Any]:
    columns = [table.c[name] for name in (*UsageKey._fields, *_SUMS)]
    statement = sa.select(*columns).where(table.c.day >= day_of(start_us), table.c.day < day_of(end_us))
    return _of(statement, table, tenant, key_id)


def _part(tenant: str | None, key_id: str | None, start_us: int, end_us: int) -> sa.Select[Any]:
    """The sums of a part of one day. The day is a literal: for a computed one, PostgreSQL would plan for a group per
    row and sort them all.
    """
    columns = interactions.c
    keys = (columns.tenant, columns.key_id, columns.model, columns.currency)
    statement = (
        sa.select(
            sa.literal(day_of(start_us)),
            *keys,
            sa.func.count(),
            sa.func.sum(sa.case((columns.outcome == "failed", 1), else_=0)),
            *(sa.cast(sa.func.sum(columns[name]), sa.BigInteger) for name in _SUMS[2:]),
        )
        .where(columns.start_time_us >= start_us, columns.start_time_us < end_us)
        .group_by(*keys)
    )
    return _of(statement, interactions, tenant, key_id)


def _of(statement: sa.Select[Any], rows: sa.Table, tenant: str | None, key_id: str | None) -> sa.Select[Any]:
    if tenant is not None:
        statement = statement.where(rows.c.tenant == tenant)
    return statement if key_id is None else statement.where(rows.c.key_id == key_id)


async def _rows(connection: AsyncConnection, statement: sa.Select[Any]) -> list[tuple[UsageKey, Usage]]:
    rows: Sequence[Any] = (await connection.execute(statement.limit(MAX_ROWS + 1))).all()
    if len(rows) > MAX_ROWS:
        raise TooLarge(
            f"The usage of this period has more than {MAX_ROWS} rows; ask for a shorter one.", field="end_time"
        )
    return [(UsageKey(*row[:5]), Usage(*row[5:])) for row in rows]
