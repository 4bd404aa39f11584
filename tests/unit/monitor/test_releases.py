"""Sums by release and hour: exact, once for each record, and deleted with the records."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_monitor import converters, retention, store, usage
from genaifactory_monitor.database import Database
from genaifactory_monitor.schema import interactions, release_arm_sums, release_hours, release_sums
from genaifactory_monitor.settings import Settings
from tests.unit.monitor.conftest import NOON, PUBLISHED, make_interaction, opened

HOUR = 3600


def recorded(request_id: str, **fields: Any) -> monitor_pb2.Interaction:
    message = make_interaction(request_id, **fields)
    return converters.interaction(message, "interactions[0]", now_us=NOON * 10**6, max_bytes=10**7)


async def rows(database: Database, sums: sa.Table = release_arm_sums) -> list[dict[str, Any]]:
    statement = sa.select(sums).order_by(*sums.primary_key)
    async with database.reading() as connection:
        return [dict(row) for row in (await connection.execute(statement)).mappings()]


async def test_an_hour_of_a_release_has_its_sums(database: Database) -> None:
    masked = [types_pb2.Verdict(action=types_pb2.ACTION_MASK), types_pb2.Verdict(action=types_pb2.ACTION_ALLOW)]
    await store.record(
        database,
        [
            recorded("a", prompt_version="rag@3", verdicts=masked, refused=True),
            recorded(
                "b", at=HOUR - 0.001, prompt_version="rag@3", time_to_first_token_us=500_000, duration_us=2_000_000
            ),
            recorded("c", prompt_version="rag@3", cached=True),
            recorded("d", prompt_version="rag@3", outcome=monitor_pb2.OUTCOME_FAILED),
            recorded("e", prompt_version="rag@3", outcome=monitor_pb2.OUTCOME_BLOCKED),
            recorded("f", prompt_version="rag@3", outcome=monitor_pb2.OUTCOME_CANCELLED),
            recorded("g", prompt_version="rag@3", time_to_first_token_us=0),
            recorded("h", prompt_version="rag@4"),
            recorded("i", at=HOUR, prompt_version="rag@3"),
        ],
    )
    first, other_prompt, next_hour = await rows(database)
    assert first | {"time_to_first_token_seconds_squared": 0, "duration_seconds_squared": 0} == {
        "route": "docs",
        "hour_us": NOON * 10**6,
        "tenant": "acme",
        "model": "extractive",
        "adapter": "",
        "prompt_version": "rag@3",
        "index_version": "",
        "split": "",
        "arm": "",
        "currency": "USD",
        "requests": 7,
        "failed": 1,
        "blocked": 1,
        "cancelled": 1,
        "masked": 1,
        "cached": 1,
        "refused": 1,
        "prompt_tokens": 700,
        "completion_tokens": 70,
        "cached_prompt_tokens": 0,
        "cost_micros": 175,
        "timed": 2,
        "time_to_first_token_us": 501_500,
        "duration_us": 2_004_500,
        "time_to_first_token_seconds_squared": 0,
        "duration_seconds_squared": 0,
    }
    assert first["time_to_first_token_seconds_squared"] == pytest.approx(0.5**2 + 0.0015**2)
    assert first["duration_seconds_squared"] == pytest.approx(2.0**2 + 0.0045**2)
    assert (next_hour["hour_us"], next_hour["requests"]) == ((NOON + HOUR) * 10**6, 1)
    assert (other_prompt["prompt_version"], other_prompt["requests"]) == ("rag@4", 1)


async def test_an_adapter_is_a_release_of_its_own_and_requests_of_evaluations_are_none(database: Database) -> None:
    await store.record(
        database,
        [
            recorded("a"),
            recorded("b", adapter="support-2"),
            recorded("c", adapter="support-2"),
            recorded("d", adapter="support-3", evaluation="e-1"),
            recorded("e", evaluation="e-1", outcome=monitor_pb2.OUTCOME_FAILED),
        ],
    )
    assert [(row["adapter"], row["requests"], row["failed"]) for row in await rows(database)] == [
        ("", 1, 0),
        ("support-2", 2, 0),
    ]
    statement = sa.select(interactions.c.adapter, interactions.c.evaluation).order_by(interactions.c.request_id)
    async with database.reading() as connection:
        assert [tuple(row) for row in await connection.execute(statement)] == [
            (None, None),
            ("support-2", None),
            ("support-2", None),
            ("support-3", "e-1"),
            (None, "e-1"),
        ]


async def test_each_arm_has_sums_of_its_own_without_what_testers_chose(database: Database) -> None:
    await store.record(
        database,
        [
            recorded("a", split="trial", arm="stable"),
            recorded("b", split="trial", arm="eight"),
            recorded("c", split="trial", arm="eight", outcome=monitor_pb2.OUTCOME_FAILED),
            recorded("d", split="trial", arm="eight", arm_chosen=True, outcome=monitor_pb2.OUTCOME_FAILED),
            recorded("e"),
        ],
    )
    assert sorted((row["split"], row["arm"], row["requests"], row["failed"]) for row in await rows(database)) == [
        ("", "", 1, 0),
        ("trial", "eight", 2, 1),
        ("trial", "stable", 1, 0),
    ]
    statement = sa.select(interactions.c.split, interactions.c.arm, interactions.c.arm_chosen)
    async with database.reading() as connection:
        found = [tuple(row) for row in await connection.execute(statement.order_by(interactions.c.request_id))]
    assert found[2:] == [("trial", "eight", None), ("trial", "eight", True), (None, None, None)]


async def test_a_batch_of_an_evaluation_alone_is_stored_and_billed(database: Database) -> None:
    await store.record(database, [recorded("a", evaluation="e-1", cost_micros=7)])
    assert await rows(database) == []
    found = await usage.between(database, "acme", NOON * 10**6, (NOON + 1) * 10**6, now_us=(NOON + 1) * 10**6)
    assert [(sums.requests, sums.cost_micros) for _, sums in found] == [(1, 7)]


async def test_the_published_query_joins_whole_and_part_hours_with_those_of_former_versions(
    postgres_settings: Settings,
) -> None:
    """Of five and a half hours, of which the former version had counted the second, and the one before it the third."""
    async with opened(postgres_settings) as database:
        for hour in (0, 1, 2, 3, 4, 5):
            at = HOUR * hour + 600.0
            of_hour = [recorded(f"{hour}{name}", at=at) for name in "ab"]
            of_hour += [recorded(f"{hour}c", at=at, adapter="support-2"), recorded(f"{hour}d", at=at, evaluation="e")]
            await store.record(database, of_hour)
        async with database.writing() as connection:
            for hour, table in ((1, release_sums), (2, release_hours)):
                columns = [column.name for column in table.columns]
                during = release_arm_sums.c.hour_us == (NOON + hour * HOUR) * 10**6
                known = sa.true() if "adapter" in columns else release_arm_sums.c.adapter == ""
                rows_of_it = sa.select(*(release_arm_sums.c[name] for name in columns)).where(during, known)
                await connection.execute(table.insert().from_select(columns, rows_of_it))
                await connection.execute(release_arm_sums.delete().where(during))
        window = {"start_us": NOON * 10**6 + 1, "first_hour_us": (NOON + HOUR) * 10**6}
        window |= {"last_hour_us": (NOON + 5 * HOUR) * 10**6, "end_us": (NOON + 5 * HOUR + 1800) * 10**6}
        async with database.reading() as connection:
            found = await connection.execute(sa.text(PUBLISHED["releases"]), {"route": "docs", **window})
            by_adapter = {row["adapter"]: row["requests"] for row in found.mappings()}
            at_a_time = await connection.execute(sa.text(PUBLISHED["percentiles"]), {"route": "docs", **window})
            timed = {row["adapter"] or "": row["count"] for row in at_a_time.mappings()}
    assert by_adapter == {"": 12, "support-2": 5}
    assert timed == {"": 12, "support-2": 6}


async def test_a_record_that_arrives_again_adds_nothing_to_its_hour(database: Database) -> None:
    first, second = recorded("first"), recorded("second")
    for batch in ([first], [first], [first, second, first]):
        await store.record(database, batch)
    assert [row["requests"] for row in await rows(database)] == [2]


async def test_sums_are_deleted_with_their_interactions(database: Database) -> None:
    chance = random.Random(2)
    await store.record(database, [recorded(f"r{i}", at=chance.uniform(0, 5 * HOUR)) for i in range(100)])
    before_us = (NOON + 2 * HOUR + 60) * 10**6
    await retention.sweep(database, before_us, batch=7)
    # The sums of an hour stay until all of its records are deleted.
    assert [(row["hour_us"] // 10**6 - NOON) // HOUR for row in await rows(database)] == [2, 3, 4]


@pytest.mark.parametrize("table", [release_sums, release_hours], ids=lambda table: table.name)
async def test_sums_of_former_versions_are_deleted_too(database: Database, table: sa.Table) -> None:
    values = {column.name: 0 if column.type.python_type in (int, float) else "" for column in table.columns}
    hours = [values | {"hour_us": (NOON + hour * HOUR) * 10**6} for hour in range(5)]
    async with database.writing() as connection:
        await connection.execute(table.insert(), hours)
    await retention.sweep(database, (NOON + 3 * HOUR) * 10**6, batch=2)
    assert [row["hour_us"] // 10**6 - NOON for row in await rows(database, table)] == [3 * HOUR, 4 * HOUR]
