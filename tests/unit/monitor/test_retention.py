"""Records older than the retention are deleted, in small batches, with their feedback; nothing else is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import sqlalchemy as sa

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.monitor.v1.monitor_pb2 import Interaction
from genaifactory_common import testing
from genaifactory_monitor import converters, retention, store
from genaifactory_monitor.database import Database
from genaifactory_monitor.records import Feedback, Filter
from genaifactory_monitor.schema import feedback as feedback_table
from genaifactory_monitor.settings import Retention, Settings
from tests.unit.monitor.conftest import NOON, make_interaction, serving

NOON_US = NOON * 10**6


def recorded(request_id: str, at: float, tenant: str = "acme") -> Interaction:
    message = make_interaction(request_id, at=at, tenant=tenant)
    return converters.interaction(message, "interactions[0]", now_us=NOON_US, max_bytes=10**6)


def judged(request_id: str, at: float, tenant: str = "acme") -> Feedback:
    return Feedback(
        tenant, f"on-{request_id}", request_id, NOON_US + round(at * 10**6), "alice", "alice", "up", "", "", None
    )


async def stored_feedback(database: Database) -> set[tuple[str, str]]:
    async with database.reading() as connection:
        rows = await connection.execute(sa.select(feedback_table.c.tenant, feedback_table.c.request_id))
        return {(tenant, request_id) for tenant, request_id in rows}


async def stored_interactions(database: Database, tenant: str) -> set[str]:
    page = await store.page(database, Filter(tenant), limit=500, max_bytes=10**9, newest_first=True)
    return {item.request_id for item in page.interactions}


async def test_old_interactions_are_deleted_with_their_feedback_and_new_ones_stay(database: Database) -> None:
    await store.record(database, [recorded(f"r{i}", at=i) for i in range(25)])
    await store.record(database, [recorded("r1", at=20, tenant="rival")])
    for request_id, tenant in (("r0", "acme"), ("r24", "acme"), ("r1", "rival")):
        await store.add_feedback(database, judged(request_id, 50, tenant))

    assert await retention.sweep(database, NOON_US + 10 * 10**6, batch=3) == 10

    assert await stored_interactions(database, "acme") == {f"r{i}" for i in range(10, 25)}
    assert await stored_interactions(database, "rival") == {"r1"}
    assert await stored_feedback(database) == {("acme", "r24"), ("rival", "r1")}


async def test_old_feedback_without_an_interaction_is_deleted_and_joined_feedback_stays(database: Database) -> None:
    await store.record(database, [recorded("here", at=20)])
    for given in (judged("here", 0), judged("never", 0), judged("not-yet", 15)):
        await store.add_feedback(database, given)

    await retention.sweep(database, NOON_US + 10 * 10**6, batch=1)

    assert await stored_feedback(database) == {("acme", "here"), ("acme", "not-yet")}


async def test_a_sweep_lets_writers_pass(database: Database) -> None:
    await store.record(database, [recorded(f"old{i}", at=0) for i in range(200)])
    async with asyncio.TaskGroup() as group:
        sweeping = group.create_task(retention.sweep(database, NOON_US + 10**6, batch=5))
        for i in range(10):
            await store.record(database, [recorded(f"new{i}", at=5)])
    assert sweeping.result() == 200
    assert await stored_interactions(database, "acme") == {f"new{i}" for i in range(10)}


async def test_a_running_monitor_sweeps_by_itself(sqlite_settings: Settings) -> None:
    testing.act_as(replace(testing.CALLER, permissions=("export",)))
    short = Retention(days=1, sweep_interval_seconds=0.01)
    async with serving(sqlite_settings.model_copy(update={"retention": short})) as monitor:
        now = monitor_pb2.Interaction().start_time
        now.GetCurrentTime()
        await monitor.record(make_interaction("old", at=-100 * 86_400), make_interaction("new", start_time=now))
        async with asyncio.timeout(10):
            while len(lines := await monitor.export()) != 1:  # noqa: ASYNC110  # each look is a call
                await asyncio.sleep(0.01)
    assert [json.loads(line)["request_id"] for line in lines] == ["new"]
