"""Replicas of the orchestrator that share conversations in a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common.testing.postgres import PostgresServer
from genaifactory_orchestrator.settings import Settings
from genaifactory_orchestrator.stores.conversations import Conversations, Key
from tests.unit.orchestrator.conftest import assistant, user

KEY = Key("acme", "alice", "c1")
# A busy machine is slow to free a connection; a deadlock is ended by PostgreSQL itself, after a second.
STORE = {"connections": 10, "busy_timeout_seconds": 60}


@asynccontextmanager
async def replicas(folder: Path, url: str, **bounds: Any) -> AsyncIterator[list[Conversations]]:
    async with AsyncExitStack() as stack:
        stores = [
            Conversations(Settings(data_dir=folder, database_url=url, conversations=bounds, store=STORE))
            for _ in range(2)
        ]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        yield stores


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


def turn(name: str, size: int = 1) -> list[types_pb2.Message]:
    return [user(name), *(assistant(name) for _ in range(size))]


async def test_concurrent_turns_of_two_replicas_are_each_added_as_a_whole_and_once(tmp_path: Path, url: str) -> None:
    async def add(store: Conversations, name: str, size: int) -> None:
        await store.add_turn(await store.begin(KEY, limit=0), turn(name, size))

    async with replicas(tmp_path, url) as stores:
        await asyncio.gather(
            *(add(store, f"{i}-{k}", size=1 + k % 4) for i, store in enumerate(stores) for k in range(50))
        )
        for store in stores:
            found = [message.content for message in (await store.begin(KEY, limit=1000)).messages]
            expected = {f"{i}-{k}": 2 + k % 4 for i in range(2) for k in range(50)}
            assert {name: found.count(name) for name in found} == expected
            assert sum(a != b for a, b in pairwise(found)) == len(expected) - 1, "no turn is interrupted by another"


async def test_a_conversation_that_two_replicas_begin_concurrently_is_one(tmp_path: Path, url: str) -> None:
    async with replicas(tmp_path, url) as stores:
        for k in range(20):
            key = replace(KEY, name=f"c{k}")
            begun = await asyncio.gather(*(store.begin(key, limit=9) for store in stores for _ in range(3)))
            assert len({history.number for history in begun}) == 1


async def test_concurrent_turns_erasures_bounds_and_upkeep_do_not_deadlock(tmp_path: Path, url: str) -> None:
    async def use(store: Conversations, k: int) -> None:
        key = replace(KEY, name=f"c{k % 7}")
        history = await store.begin(key, limit=9)
        await store.add_turn(history, turn(f"{k}"))
        if k % 5 == 0:
            await store.erase(key)
        if k % 11 == 0:
            await store.delete_old()

    bounds = {"max_messages": 3, "max_per_principal": 4, "max_age_seconds": 0.02, "retry_seconds": 0}
    # A deadlock would be an Unavailable.
    async with replicas(tmp_path, url, **bounds) as stores, asyncio.TaskGroup() as group:
        for k in range(200):
            group.create_task(use(stores[k % 2], k))


async def test_a_turn_does_not_restore_a_conversation_that_another_replica_has_erased(tmp_path: Path, url: str) -> None:
    async with replicas(tmp_path, url) as (one, other):
        history = await one.begin(KEY, limit=9)
        assert await other.erase(KEY)
        await one.add_turn(history, turn("late"))
        assert (await other.begin(KEY, limit=9)).messages == ()
