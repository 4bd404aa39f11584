"""Stored conversations, in either database: bounded, erasable, and private to their callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, PermissionDenied
from genaifactory_common.testing import CALLER, act_as
from genaifactory_orchestrator.settings import Settings
from genaifactory_orchestrator.stores.conversations import Conversations, Key
from tests.unit.orchestrator.conftest import MakeWorld, World

KEY = Key("acme", "alice", "c1")


def user(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, content=text)


def assistant(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=text)


@pytest.fixture
async def world(make_world: MakeWorld, database_url: str | None) -> AsyncIterator[World]:
    """A world with each database."""
    async with make_world(database_url=database_url) as made:
        yield made


def last_conversation(world: World) -> list[str]:
    return [m.content for m in world.modelserver.requests[-1].conversation.messages if m.role != types_pb2.ROLE_SYSTEM]


async def erase(world: World, name: str) -> bool:
    request = orchestrator_pb2.DeleteConversationRequest(conversation_id=name)
    response = await channels.unary(world.stub.DeleteConversation, request, timeout_seconds=5)
    return bool(response.existed)


async def test_a_turn_continues_the_stored_conversation(world: World) -> None:
    world.modelserver.script = ["Hi Ann."]
    await world.ask("I am Ann.", route="chat", conversation_id="c1")
    await world.ask("Who am I?", route="chat", conversation_id="c1")
    assert last_conversation(world) == ["I am Ann.", "Hi Ann.", "Who am I?"]


async def test_a_conversation_survives_a_restart(make_world: MakeWorld, database_url: str | None) -> None:
    async with make_world(database_url=database_url) as world:
        await world.ask("I am Ann.", route="chat", conversation_id="c1")
    async with make_world(database_url=database_url) as world:
        await world.ask("Who am I?", route="chat", conversation_id="c1")
        assert last_conversation(world)[0] == "I am Ann."


@pytest.mark.parametrize("other", [{"tenant": "other"}, {"principal": "bob"}])
async def test_another_caller_can_neither_read_nor_erase_a_conversation(world: World, other: dict[str, Any]) -> None:
    await world.ask("I am Ann.", route="chat", conversation_id="c1")
    act_as(replace(CALLER, **other))
    await world.ask("Who am I?", route="chat", conversation_id="c1")
    assert last_conversation(world) == ["Who am I?"]
    assert await erase(world, "c1")
    act_as(CALLER)
    await world.ask("Who am I?", route="chat", conversation_id="c1")
    assert last_conversation(world)[0] == "I am Ann."


def all_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("conversations.db*"))


async def test_an_erased_conversation_is_not_continued(world: World) -> None:
    await world.ask("My secret is Xylophon.", route="chat", conversation_id="c1")
    assert await erase(world, "c1")
    assert not await erase(world, "c1")
    await world.ask("What is my secret?", route="chat", conversation_id="c1")
    assert last_conversation(world) == ["What is my secret?"]


async def test_an_erased_conversation_is_gone_from_the_file_too(make_world: MakeWorld, tmp_path: Path) -> None:
    async with make_world() as world:
        await world.ask("My secret is Xylophon.", route="chat", conversation_id="c1")
        assert b"Xylophon" in await asyncio.to_thread(all_bytes, tmp_path / "orchestrator")
        assert await erase(world, "c1")
        assert b"Xylophon" not in await asyncio.to_thread(all_bytes, tmp_path / "orchestrator")


async def test_an_answer_that_ends_after_the_erasure_does_not_bring_it_back(world: World) -> None:
    going_on = asyncio.Event()
    world.modelserver.script = ["started ", going_on, "done"]
    asking = asyncio.create_task(world.ask("first", route="chat", conversation_id="c1"))
    await world.until(lambda: world.modelserver.running)
    await erase(world, "c1")
    going_on.set()
    await asking
    world.modelserver.script = ["ok"]
    await world.ask("second", route="chat", conversation_id="c1")
    assert last_conversation(world) == ["second"]


async def test_only_text_that_the_guardrails_have_passed_is_stored(world: World) -> None:
    world.safety.mask = {"0912345678": "<PHONE>"}
    world.modelserver.script = ["Noted: 0912345678."]
    await world.ask("Mine is 0912345678", route="chat", conversation_id="c1")
    world.safety.block = ("bomb",)
    with pytest.raises(FactoryError):
        await world.ask("a bomb", route="chat", conversation_id="c1")
    world.modelserver.script = ["a bomb"]
    await world.ask("what?", route="chat", conversation_id="c1")
    world.modelserver.script = ["ok"]
    await world.ask("and now?", route="chat", conversation_id="c1")
    assert last_conversation(world) == ["Mine is <PHONE>", "Noted: <PHONE>.", "and now?"]


async def test_concurrent_turns_are_each_stored_as_a_whole(world: World) -> None:
    await asyncio.gather(*(world.ask(f"q{i}", route="chat", conversation_id="c1") for i in range(8)))
    await world.ask("last", route="chat", conversation_id="c1")
    *turns, last = last_conversation(world)
    assert last == "last"
    assert sorted(turns[::2]) == [f"q{i}" for i in range(8)]
    assert set(turns[1::2]) == {"You have 14 days [1]."}


async def test_a_tool_call_and_its_result_are_stored(world: World) -> None:
    from genaifactory.modelserver.v1 import modelserver_pb2

    call = types_pb2.ToolCall(id="c1", name="f", arguments_json="{}")
    world.modelserver.script = [
        modelserver_pb2.GenerateResponse(tool_calls=[call]),
        modelserver_pb2.GenerateResponse(finish_reason=types_pb2.FINISH_REASON_TOOL_CALLS),
    ]
    tools = [types_pb2.Tool(name="f")]
    await world.ask("call it", route="chat", conversation_id="t", tools=tools)
    result = types_pb2.Message(role=types_pb2.ROLE_TOOL, content="42", tool_call_id="c1")
    world.modelserver.script = ["42!"]
    await world.ask(messages=[result], route="chat", conversation_id="t", tools=tools)
    messages = world.modelserver.requests[-1].conversation.messages
    assert [m.role for m in messages] == [types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_TOOL]
    assert messages[1].tool_calls[0].id == "c1"


@asynccontextmanager
async def opened(path: Path, url: str | None, **bounds: Any) -> AsyncIterator[Conversations]:
    store = Conversations(Settings(data_dir=path, database_url=url, conversations=bounds))
    await store.open()
    yield store
    await store.close()


async def texts(store: Conversations, *, limit: int = 1000) -> list[str]:
    return [message.content for message in (await store.begin(KEY, limit=limit)).messages]


async def test_the_oldest_messages_are_deleted_first_and_no_answer_is_returned_without_its_question(
    tmp_path: Path, database_url: str | None
) -> None:
    async with opened(tmp_path, database_url, max_messages=5) as store:
        for i in range(4):
            history = await store.begin(KEY, limit=100)
            await store.add_turn(history, [user(f"q{i}"), assistant(f"a{i}")])
        assert await texts(store) == ["q2", "a2", "q3", "a3"]
        assert await texts(store, limit=3) == ["q3", "a3"]
        assert await texts(store, limit=0) == []


async def test_messages_beyond_the_age_limit_are_deleted(
    tmp_path: Path, database_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, database_url, max_age_seconds=100) as store:
        for _ in range(501):
            await store.add_turn(await store.begin(KEY, limit=0), [user("old")])
        await store.add_turn(await store.begin(replace(KEY, name="c2"), limit=0), [user("old")])
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 101)
        await store.add_turn(await store.begin(replace(KEY, name="c2"), limit=9), [user("new")])
        assert await texts(store) == []
        await store.delete_old()
        assert not await store.erase(KEY), "an empty one is deleted as well"
        left = await store.begin(replace(KEY, name="c2"), limit=9)
        assert [message.content for message in left.messages] == ["new"]


async def test_the_number_of_conversations_of_a_caller_is_bounded_and_the_least_recently_used_is_deleted_first(
    tmp_path: Path, database_url: str | None
) -> None:
    async with opened(tmp_path, database_url, max_per_principal=2) as store:
        await store.begin(replace(KEY, principal="bob"), limit=9)
        for name in ("a", "b", "a", "c"):
            key = replace(KEY, name=name)
            await store.add_turn(await store.begin(key, limit=9), [user("x")])
        assert [name for name in "abc" if await store.erase(replace(KEY, name=name))] == ["a", "c"]
        assert await store.erase(replace(KEY, principal="bob")), "another's are not counted"


async def test_a_turn_of_an_erased_conversation_is_not_added_to_a_new_one(
    tmp_path: Path, database_url: str | None
) -> None:
    async with opened(tmp_path, database_url) as store:
        first = await store.begin(KEY, limit=9)
        assert await store.erase(KEY)
        second = await store.begin(KEY, limit=9)
        assert second.number != first.number
        await store.add_turn(first, [user("of the erased one")])
        assert await texts(store) == []


async def test_conversations_are_counted_by_tenant_for_callers_with_the_permission_operate(world: World) -> None:
    for tenant, name in (("acme", "c1"), ("acme", "c2"), ("globex", "c1")):
        act_as(replace(CALLER, tenant=tenant))
        await world.ask("Hello", route="chat", conversation_id=name)
    request = orchestrator_pb2.CountConversationsRequest()
    with pytest.raises(PermissionDenied, match="operate"):
        await channels.unary(world.stub.CountConversations, request, timeout_seconds=5)
    act_as(replace(CALLER, permissions=("operate",)))
    counts = (await channels.unary(world.stub.CountConversations, request, timeout_seconds=5)).counts
    assert [(each.tenant, each.conversations) for each in counts] == [("acme", 2), ("globex", 1)]
