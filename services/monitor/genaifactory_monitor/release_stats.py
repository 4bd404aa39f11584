"""Adds up what the releases of a route did in a period of whole hours, from the sums by hour and from feedback."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from genaifactory.monitor.v1.monitor_pb2 import ReleaseStats
from genaifactory.types.v1 import types_pb2
from genaifactory_common.database import uninterrupted
from genaifactory_common.errors import TooLarge
from genaifactory_monitor import releases
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import ReleaseFilter
from genaifactory_monitor.schema import feedback, interactions, release_arm_sums, release_sums

MAX_ROWS = 5_000
_KEY = ("split", "arm", "model", "adapter", "prompt_version", "index_version", "currency")
# Fields of ReleaseStats that are sums of the column of their name.
_COUNTS = ("requests", "failed", "blocked", "cancelled", "masked", "cached", "refused", "cost_micros", "timed")
Ratings = dict[str, int]


def whole_hours(start_us: int, end_us: int) -> tuple[int, int]:
    """The least period of whole hours that holds the one from `start_us` (inclusive) to `end_us` (exclusive)."""
    return start_us // releases.HOUR_US * releases.HOUR_US, -(-end_us // releases.HOUR_US) * releases.HOUR_US


@uninterrupted
async def between(database: Database, wanted: ReleaseFilter) -> list[ReleaseStats]:
    """The releases, sorted by split, arm, model and versions. Raises TooLarge beyond MAX_ROWS, Unavailable."""
    async with database.reading() as connection:
        found = (await connection.execute(_sums(wanted))).mappings().all()
        rated = await _ratings(connection, wanted)
    if len(found) > MAX_ROWS:
        raise TooLarge(
            f"The route has more than {MAX_ROWS} releases in this period; ask for a shorter one.", field="start_time"
        )
    return [_stats(dict(row), rated[tuple(row[name] for name in _KEY)]) for row in found]


def _sums(wanted: ReleaseFilter) -> sa.Select[Any]:
    hours = sa.union_all(*(_hours(table, wanted) for table in (release_arm_sums, release_sums))).subquery()
    key = [hours.c[name] for name in _KEY]
    added = [
        # PostgreSQL adds up integers as decimals.
        sa.cast(sa.func.sum(hours.c[name]), hours.c[name].type).label(name)
        for name in releases.SUMS
    ]
    return sa.select(*key, *added).group_by(*key).order_by(*key).limit(MAX_ROWS + 1)


def _hours(sums: sa.Table, wanted: ReleaseFilter) -> sa.Select[Any]:
    """The period's rows of one table; those of the former version have no split and no arm."""
    key = [sums.c[name] if name in sums.c else sa.literal_column("''", sa.Text).label(name) for name in _KEY]
    statement = sa.select(*key, *(sums.c[name] for name in releases.SUMS)).where(
        sums.c.route == wanted.route, sums.c.hour_us >= wanted.start_us, sums.c.hour_us < wanted.end_us
    )
    if wanted.tenant is not None:
        statement = statement.where(sums.c.tenant == wanted.tenant)
    if wanted.split:
        statement = statement.where(sums.c.split == wanted.split if "split" in sums.c else sa.false())
    return statement


async def _ratings(connection: AsyncConnection, wanted: ReleaseFilter) -> defaultdict[tuple[Any, ...], Ratings]:
    """Ratings of the period's requests by release. They are found by their own time, which is after that of their
    request (give or take the clocks of two machines), so that not every request is looked at.
    """
    columns = interactions.c
    key = [sa.func.coalesce(columns[name], "").label(name) for name in _KEY]
    statement = (
        sa.select(*key, feedback.c.rating, sa.func.count().label("number"))
        .select_from(
            feedback.join(
                interactions,
                (columns.tenant == feedback.c.tenant) & (columns.request_id == feedback.c.request_id),
            )
        )
        .where(
            feedback.c.time_us >= wanted.start_us - releases.HOUR_US,
            columns.start_time_us >= wanted.start_us,
            columns.start_time_us < wanted.end_us,
            columns.route == wanted.route,
            columns.evaluation.is_(None),
            columns.arm_chosen.is_(None),
            feedback.c.rating != "",
        )
        .group_by(*key, feedback.c.rating)
    )
    if wanted.tenant is not None:
        statement = statement.where(feedback.c.tenant == wanted.tenant)
    if wanted.split:
        statement = statement.where(columns.split == wanted.split)
    found: defaultdict[tuple[Any, ...], Ratings] = defaultdict(dict)
    for *release, rating, number in await connection.execute(statement):
        found[tuple(release)][rating] = number
    return found


def _stats(row: dict[str, Any], rated: Ratings) -> ReleaseStats:
    first, first_deviation = _moments(row, "time_to_first_token")
    whole, whole_deviation = _moments(row, "duration")
    return ReleaseStats(
        **{name: row[name] for name in (*_KEY, *_COUNTS)},
        usage=types_pb2.TokenUsage(
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cached_prompt_tokens=row["cached_prompt_tokens"],
        ),
        first_token_mean_seconds=first,
        first_token_deviation_seconds=first_deviation,
        duration_mean_seconds=whole,
        duration_deviation_seconds=whole_deviation,
        rated_up=rated.get("up", 0),
        rated_down=rated.get("down", 0),
    )


def _moments(row: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean and standard deviation of a sample, in seconds, from the sums of a time and of its squares."""
    number = row["timed"]
    if not number:
        return 0.0, 0.0
    mean = row[f"{name}_us"] / number / 1e6
    if number == 1:
        return mean, 0.0
    squares = row[f"{name}_seconds_squared"] - number * mean**2
    return mean, math.sqrt(max(squares, 0.0) / (number - 1))  # a rounded sum may be less than 0
