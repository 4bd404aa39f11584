"""GetUsage: exact sums by UTC day, tenant, key and model, for any period."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import timestamp_pb2

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.monitor.v1.monitor_pb2 import Interaction
from genaifactory.types.v1 import types_pb2
from genaifactory_common import testing
from genaifactory_common.errors import InvalidArgument, PermissionDenied, TooLarge
from genaifactory_monitor import converters, retention, schema, store, usage
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import microseconds
from genaifactory_monitor.records import Usage, UsageKey
from tests.unit.monitor.conftest import NOON, Monitor, make_interaction, moment

DAY = 86_400
HALF = DAY // 2


def recorded(message: monitor_pb2.Interaction) -> Interaction:
    return converters.interaction(message, "interactions[0]", now_us=(NOON + 30 * DAY) * 10**6, max_bytes=10**6)


async def test_usage_is_added_up_by_day_key_model_and_currency(monitor: Monitor) -> None:
    testing.act_as()
    tokens = types_pb2.TokenUsage(prompt_tokens=7, completion_tokens=3, cached_prompt_tokens=2)
    await monitor.record(
        make_interaction("a", at=-HALF, usage=tokens, cost_micros=5),
        make_interaction("b", at=HALF - 0.000001, usage=tokens, cost_micros=6, outcome=monitor_pb2.OUTCOME_FAILED),
        make_interaction("c", at=HALF, usage=tokens, cost_micros=7),
        make_interaction("d", at=0, key_id="bob", usage=tokens, outcome=monitor_pb2.OUTCOME_BLOCKED),
        make_interaction("e", at=0, model="big", usage=tokens),
        make_interaction("f", at=0, currency="VND", usage=tokens),
        make_interaction("z", at=0, tenant="rival"),
    )

    rows = await monitor.usage(start_time=moment(-HALF), end_time=moment(HALF + DAY))

    first = rows[0].day
    assert [(r.day == first, r.key_id, r.model, r.currency, r.requests, r.errors, r.cost_micros) for r in rows] == [
        (True, "alice", "big", "USD", 1, 0, 25),
        (True, "alice", "extractive", "USD", 2, 1, 11),
        (True, "alice", "extractive", "VND", 1, 0, 25),
        (True, "bob", "extractive", "USD", 1, 0, 25),
        (False, "alice", "extractive", "USD", 1, 0, 7),
    ]
    assert rows[1].usage == types_pb2.TokenUsage(prompt_tokens=14, completion_tokens=6, cached_prompt_tokens=4)
    assert {r.tenant for r in rows} == {"acme"}


async def test_any_period_has_the_sums_of_its_interactions(database: Database) -> None:
    chance = random.Random(7)
    items = [
        recorded(
            make_interaction(
                f"r{i}",
                at=chance.uniform(-4 * DAY, 4 * DAY),
                tenant=chance.choice(("acme", "rival")),
                key_id=chance.choice(("k1", "k2")),
                usage=types_pb2.TokenUsage(prompt_tokens=chance.randrange(100)),
                cost_micros=chance.randrange(1000),
                outcome=chance.choice((1, 2, 3, 4)),
            )
        )
        for i in range(400)
    ]
    await store.record(database, items)

    for _ in range(60):
        start, end = sorted(
            round((NOON + (x if chance.random() < 0.7 else x // DAY * DAY + HALF)) * 10**6)
            for x in (chance.uniform(-5 * DAY, 5 * DAY), chance.uniform(-5 * DAY, 5 * DAY))
        )
        tenant = chance.choice((None, "acme"))
        expected: dict[UsageKey, Usage] = defaultdict(Usage)
        for item in items:
            began_us = microseconds(item.start_time)
            if start <= began_us < end and tenant in (None, item.tenant):
                key = UsageKey(usage.day_of(began_us), item.tenant, item.key_id, item.model, "USD")
                failed = int(item.outcome == monitor_pb2.OUTCOME_FAILED)
                expected[key] += Usage(1, failed, item.usage.prompt_tokens, 0, 0, item.cost_micros)
        found = await usage.between(database, tenant, start, end, now_us=(NOON + 30 * DAY) * 10**6)
        assert found == sorted(expected.items(), key=lambda pair: pair[0])


async def test_usage_outlives_the_interactions(database: Database) -> None:
    await store.record(database, [recorded(make_interaction("a"))])
    start, end = (NOON - HALF) * 10**6, (NOON + HALF) * 10**6
    before = await usage.between(database, "acme", start, end, now_us=end)
    assert await retention.sweep(database, end, batch=10) == 1
    assert await usage.between(database, "acme", start, end, now_us=end) == before != []


async def test_concurrent_writers_lose_nothing_and_count_nothing_twice(database: Database) -> None:
    batches = [[recorded(make_interaction(f"r{i}", at=i)) for i in range(k, k + 20)] for k in range(0, 200, 10)]
    stored = await asyncio.gather(*(store.record(database, batch) for batch in batches))
    assert sum(map(len, stored)) == 210
    rows = await usage.between(database, "acme", NOON * 10**6, (NOON + HALF) * 10**6, now_us=NOON * 10**6)
    assert [sums.requests for _, sums in rows] == [210]


async def test_the_default_period_is_the_last_30_days(monitor: Monitor) -> None:
    testing.act_as()
    now = monitor_pb2.Interaction().start_time
    now.GetCurrentTime()
    await monitor.record(make_interaction("now", start_time=now), make_interaction("old", at=-100 * DAY))
    assert [row.requests for row in await monitor.usage()] == [1]


async def test_every_tenants_usage_is_for_operators_alone(monitor: Monitor) -> None:
    await monitor.record(make_interaction("a"), make_interaction("b", tenant="rival"))
    period: dict[str, Any] = {"start_time": moment(-1), "end_time": moment(1)}

    testing.act_as()
    with pytest.raises(PermissionDenied, match="'operate'"):
        await monitor.usage(tenant="*", **period)
    with pytest.raises(PermissionDenied, match="'operate'") as refused:
        await monitor.usage(tenant="rival", **period)
    assert refused.value.field == "tenant"

    testing.act_as(replace(testing.CALLER, tenant="platform", permissions=("usage", "operate")))
    assert [row.tenant for row in await monitor.usage(tenant="*", **period)] == ["acme", "rival"]
    assert [row.tenant for row in await monitor.usage(tenant="rival", **period)] == ["rival"]


async def test_without_the_permission_a_caller_gets_the_usage_of_its_own_key(monitor: Monitor) -> None:
    half_days = (-HALF, 0, HALF)  # days in part and whole ones
    await monitor.record(
        *(make_interaction(f"own{at}", at=at, key_id="bob") for at in half_days),
        *(make_interaction(f"colleague{at}", at=at) for at in half_days),
        make_interaction("other tenant", tenant="rival", key_id="bob"),
    )
    period: dict[str, Any] = {"start_time": moment(-HALF), "end_time": moment(2 * DAY)}
    bob = replace(testing.CALLER, key_id="bob", permissions=("chat",))
    testing.act_as(bob)
    rows = await monitor.usage(**period)
    assert {(row.tenant, row.key_id) for row in rows} == {("acme", "bob")}
    assert sum(row.requests for row in rows) == 3
    rows = await monitor.usage(start_time=moment(-1), end_time=moment(1))  # a part of a day
    assert [(row.tenant, row.key_id, row.requests) for row in rows] == [("acme", "bob", 1)]

    testing.act_as(replace(bob, permissions=("chat", "operate")))
    for tenant in ("*", "rival"):
        with pytest.raises(PermissionDenied, match="'usage'"):
            await monitor.usage(tenant=tenant, **period)

    testing.act_as(replace(bob, key_id="carol"))
    assert await monitor.usage(**period) == []

    testing.act_as(replace(bob, permissions=("usage",)))
    assert {row.key_id for row in await monitor.usage(**period)} == {"alice", "bob"}


async def test_usage_up_to_the_end_of_the_calendar_is_all_usage(monitor: Monitor) -> None:
    testing.act_as()
    await monitor.record(make_interaction("a"))
    latest = timestamp_pb2.Timestamp(seconds=253_370_764_799, nanos=999_999_999)
    rows = await monitor.usage(start_time=timestamp_pb2.Timestamp(seconds=946_684_800), end_time=latest)
    assert [row.requests for row in rows] == [1]


async def test_usage_with_too_many_rows_is_refused(sqlite_monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    testing.act_as()
    monkeypatch.setattr(usage, "MAX_ROWS", 2)
    await sqlite_monitor.record(*(make_interaction(f"r{i}", key_id=f"k{i}") for i in range(3)))
    with pytest.raises(TooLarge, match="ask for a shorter one") as refused:
        await sqlite_monitor.usage(start_time=moment(-1), end_time=moment(1))
    assert refused.value.field == "end_time"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"start_time": moment(1), "end_time": moment(0)}, "end_time"),
        ({"start_time": moment(0), "end_time": moment(0)}, "end_time"),
        ({"start_time": moment(-(10**10))}, "start_time"),
        ({"end_time": moment(10**12)}, "end_time"),
    ],
)
async def test_an_impossible_period_is_refused(request_: dict[str, Any], field: str, sqlite_monitor: Monitor) -> None:
    testing.act_as()
    with pytest.raises(InvalidArgument) as refused:
        await sqlite_monitor.usage(**request_)
    assert refused.value.field == field


async def test_a_record_that_arrives_again_adds_nothing_to_the_stored_usage(database: Database) -> None:
    first, second = (recorded(make_interaction(name, cost_micros=7)) for name in ("first", "second"))
    await store.record(database, [first])
    await store.record(database, [first])
    await store.record(database, [first, second, first])
    async with database.reading() as connection:
        table = schema.usage
        rows = await connection.execute(sa.select(table.c.requests, table.c.prompt_tokens, table.c.cost_micros))
        assert [tuple(row) for row in rows] == [(2, 200, 14)]
