"""Queries on a large table use its indexes and sums. FULL=1: two million rows, each query within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from genaifactory_common.testing.postgres import PostgresServer
from genaifactory_monitor import former, release_stats, retention, store, usage
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import Filter, Position, ReleaseFilter
from genaifactory_monitor.settings import Settings
from tests.full import FULL
from tests.unit.monitor.conftest import PUBLISHED, opened
from tests.unit.monitor.scale import SPACING_US, START_US, Plan, PlanLog, fill

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
ROWS, SPACING, DAYS = (2_000_000, SPACING_US, 365) if FULL else (40_000, 15_750_000, 10)
"""Seven days in both forms."""


@pytest.mark.slow
@pytest.mark.timeout(1800 if FULL else 300)
async def test_queries_on_a_large_table_read_a_small_part_of_it(
    postgres_settings: Settings, postgres: PostgresServer
) -> None:
    log = PlanLog(postgres)
    async with opened(postgres_settings) as database:
        await fill(database, interactions=ROWS, spacing_us=SPACING, days=DAYS)
        await log.begin(database)
        name = str(await _scalar(database, "SELECT current_database()"))
    await asyncio.to_thread(postgres.run, "vacuumdb", "-h", str(postgres.folder), "-U", "postgres", "--analyze", name)

    start, end = START_US + 3 * DAY_US + HOUR_US // 3, START_US + 5 * DAY_US + HOUR_US // 2
    window = {"route": "route-1", "start_us": start, "end_us": end}
    window |= {"first_hour_us": -(-start // HOUR_US) * HOUR_US, "last_hour_us": end // HOUR_US * HOUR_US}
    recent = window | {"start_us": end - DAY_US}
    year = (START_US + 7 * DAY_US - 365 * DAY_US, START_US + 7 * DAY_US)
    after = Position(start, "r")
    async with opened(postgres_settings) as database:

        async def ask(name: str, **values: Any) -> None:
            async with database.reading() as connection:
                assert (await connection.execute(sa.text(PUBLISHED[name]), values)).all()

        async def compared(start_us: int, end_us: int) -> None:
            period = release_stats.whole_hours(start_us, end_us)
            assert await release_stats.between(database, ReleaseFilter("t3", "route-1", "", *period))

        async def page(*, newest_first: bool, after: Position | None) -> None:
            found = await store.page(
                database, Filter("t3"), after=after, newest_first=newest_first, limit=200, max_bytes=10**7
            )
            assert len(found.interactions) == 200

        questions: dict[str, tuple[Callable[[], Awaitable[object]], str]] = {
            "usage of two days and a half": (
                lambda: usage.between(database, None, start, end, now_us=year[1]),
                "Index Only Scan using ix_interactions_time_sums",
            ),
            "a tenant's usage of a year": (lambda: usage.between(database, "t3", *year, now_us=year[1]), "usage"),
            "releases of two days": (
                lambda: ask("releases", **window),
                "ix_interactions_time_sums",
            ),
            "releases of the year": (
                lambda: ask("releases", **window | {"start_us": year[0], "first_hour_us": year[0]}),
                "release_arm_sums",
            ),
            "releases of a day compared": (lambda: compared(end - DAY_US, end), "release_arm_sums"),
            "percentiles of a day": (
                lambda: ask("percentiles", **recent),
                "ix_interactions_time_sums",
            ),
            "feedback of a day": (lambda: ask("feedback", **recent), "ix_feedback_time"),
            "the newest of a tenant": (lambda: page(newest_first=True, after=None), "ix_interactions_tenant_time"),
            "a page of an export": (lambda: page(newest_first=False, after=after), "ix_interactions_tenant_time"),
            "what is too old": (
                lambda: retention.sweep(database, START_US - (DAYS - 8) * DAY_US, batch=500),
                "ix_interactions_time_sums",
            ),
            "what the former version wrote": (lambda: former.count_batch(database), "ix_interactions_uncounted"),
        }
        await log.take()
        slow: list[str] = []
        for question, (put, index) in questions.items():
            await put()
            await put()  # the first time opens the connection, and reads from the disk
            plans = await log.take()
            assert any(index in plan.text for plan in plans), f"{question}: {plans}"
            for plan in plans:
                assert not plan.scans("interactions"), f"{question}: {plan.text}"
                assert question == "releases of the year" or not plan.scans("release_arm_sums"), (
                    f"{question}: {plan.text}"
                )
            if FULL:
                _report(question, plans)
                slow += [question] if _milliseconds(plans[len(plans) // 2 :]) > 1000 else []
    assert slow == []


async def _scalar(database: Database, statement: str) -> Any:
    async with database.reading() as connection:
        return await connection.scalar(sa.text(statement))


def _milliseconds(plans: list[Plan]) -> float:
    """Of all statements; of one in parallel each worker logs its part, beside the whole."""
    longest: dict[str, float] = {}
    for plan in plans:
        longest[plan.statement] = max(plan.milliseconds, longest.get(plan.statement, 0.0))
    return sum(longest.values())


def _report(question: str, plans: list[Plan]) -> None:
    for plan in plans[len(plans) // 2 :]:
        print(f"\n{question}: {plan.milliseconds:.0f} ms\n{plan.text}")
