"""Sums by release and hour: exact, once for each record, and deleted with the records."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_monitor import converters, retention, store
from genaifactory_monitor.database import Database
from genaifactory_monitor.schema import release_hours
from tests.unit.monitor.conftest import NOON, make_interaction

HOUR = 3600


def recorded(request_id: str, **fields: Any) -> monitor_pb2.Interaction:
    message = make_interaction(request_id, **fields)
    return converters.interaction(message, "interactions[0]", now_us=NOON * 10**6, max_bytes=10**7)


async def rows(database: Database) -> list[dict[str, Any]]:
    statement = sa.select(release_hours).order_by(*release_hours.primary_key)
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
        "prompt_version": "rag@3",
        "index_version": "",
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
