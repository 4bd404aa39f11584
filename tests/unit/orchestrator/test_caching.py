"""The cache of answers, through requests and by itself."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import settings as common_settings
from genaifactory_common import specs
from genaifactory_common.errors import Unavailable
from genaifactory_common.space import Space
from genaifactory_common.testing import CALLER, act_as, struct
from genaifactory_common.testing.retriever import passage
from genaifactory_orchestrator import settings
from genaifactory_orchestrator.stores import cache
from genaifactory_orchestrator.stores.cache import Cache, Entry
from tests.unit.orchestrator.conftest import MakeWorld, World

CREATIVE = {"sampling": types_pb2.Sampling(temperature=0.7)}
GREEDY = types_pb2.Sampling(temperature=0)


def user(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, content=text)


async def test_the_same_question_is_answered_from_the_cache_with_the_same_events(world: World) -> None:
    first = await world.ask()
    request = world.request("  How many days of leave?\r\n")
    second = await world.send(request)
    assert len(world.modelserver.requests) == 1
    assert second.done.cached
    assert not first.done.cached
    assert second.kinds == first.kinds
    assert second.text() == first.text()
    assert second.done.citations == first.done.citations
    assert second.done.model == "small"
    assert second.done.usage.prompt_tokens == second.done.cost_micros == 0
    assert second.verdicts[-1] == first.verdicts[-1]
    record = await world.recorded(request.request_id)
    assert record.cached
    assert record.output == "You have 14 days [1]."
    assert record.model == "small"


async def test_a_question_to_other_documents_is_answered_anew(world: World) -> None:
    for year, cached in (("2025", False), ("2026", False), ("2025", True), ("2026", True)):
        answer = await world.ask(search_options=types_pb2.SearchOptions(filter={"year": year}))
        assert answer.done.cached is cached


async def test_the_progress_that_follows_a_refusal_is_not_cached(world: World) -> None:
    world.modelserver.script = ["I cannot say."]
    world.retriever.reading = types_pb2.Reading(documents_done=1, documents_total=3)
    first = await world.ask()
    world.retriever.reading = types_pb2.Reading(documents_done=2, documents_total=3)
    second = await world.ask()
    world.retriever.reading = None
    third = await world.ask()
    assert (first.done.cached, second.done.cached, third.done.cached) == (False, True, True)
    assert "(1 of 3)" in first.text()
    assert "(2 of 3)" in second.text()
    assert third.text() == "I cannot say."


async def test_the_use_of_the_cache_is_reported(world: World) -> None:
    uses = [(await world.ask(**fields)).events[0].opened.cache for fields in ({}, {}, {"fresh": True}, CREATIVE)]
    assert uses == [
        types_pb2.CACHE_USE_MISS,
        types_pb2.CACHE_USE_HIT,
        types_pb2.CACHE_USE_BYPASS,
        types_pb2.CACHE_USE_BYPASS,
    ]


async def test_a_fresh_answer_is_generated_and_replaces_the_cached_one(world: World) -> None:
    await world.ask()
    world.modelserver.script = ["You have ", "20 days [1]."]
    fresh = await world.ask(fresh=True)
    assert not fresh.done.cached
    assert fresh.text() == "You have 20 days [1]."
    again = await world.ask()
    assert again.done.cached
    assert again.text() == "You have 20 days [1]."


Change = Callable[[World], dict[str, Any]]
"""Changes something; returns changed fields of the request."""


def other_tenant(world: World) -> dict[str, Any]:
    act_as(replace(CALLER, tenant="other"))
    return {}


def other_groups(world: World) -> dict[str, Any]:
    act_as(replace(CALLER, groups=("staff", "board")))
    return {}


def swapped_index(world: World) -> dict[str, Any]:
    world.retriever.index_version = "v2"
    return {}


def changed_document(world: World) -> dict[str, Any]:
    world.retriever.passages = [passage("Leave is 15 days."), world.retriever.passages[1]]
    return {}


def changed(**fields: Any) -> Change:
    return lambda world: fields


def changed_factory(old: str, new: str) -> Change:
    def change(world: World) -> dict[str, Any]:
        document = world.source.current.model_dump_json()
        assert old in document
        world.source.replace(specs.parse(document.replace(old, new)))
        return {}

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(other_tenant, id="another tenant"),
        pytest.param(other_groups, id="other groups"),
        pytest.param(swapped_index, id="another index version"),
        pytest.param(changed_document, id="a changed document"),
        pytest.param(changed(question="How many days of Leave?"), id="another question"),
        pytest.param(changed(messages=[user("Hi"), user("How many days of leave?")]), id="another conversation"),
        pytest.param(changed(sampling=types_pb2.Sampling(max_tokens=5)), id="another token limit"),
        pytest.param(changed(sampling=types_pb2.Sampling(temperature=0.7)), id="sampling that varies"),
        pytest.param(changed(sampling=types_pb2.Sampling(min_p=0.1)), id="another min_p"),
        pytest.param(changed(sampling=types_pb2.Sampling(repetition_penalty=1.1)), id="another repetition penalty"),
        pytest.param(
            changed(sampling=types_pb2.Sampling(chat_template_kwargs=struct({"a": 1}))), id="another template variable"
        ),
        pytest.param(changed(sampling=types_pb2.Sampling(n=2)), id="several choices"),
        pytest.param(changed(sampling=types_pb2.Sampling(logprobs=True)), id="logprobs"),
        pytest.param(changed(tools=[types_pb2.Tool(name="f")]), id="tools"),
        pytest.param(changed(output_format=types_pb2.OutputFormat(json_object=True)), id="an output format"),
        pytest.param(changed_factory('"version":2', '"version":3'), id="another prompt version"),
        pytest.param(changed_factory("Answer {{ tenant }}", "Reply {{ tenant }}"), id="an edited prompt"),
        pytest.param(changed_factory('"min_score":0.5', '"min_score":0.4'), id="another policy"),
        pytest.param(changed_factory('"model":"small"', '"model":"small2"'), id="another backend"),
        pytest.param(changed_factory('"enabled":true', '"enabled":false'), id="a route without a cache"),
    ],
)
async def test_a_cached_answer_is_not_used_for(world: World, change: Change) -> None:
    await world.ask()
    again = await world.ask(**change(world))
    assert not again.done.cached
    assert len(world.modelserver.requests) == 2


async def test_a_reload_without_changes_for_the_route_keeps_its_cached_answers(world: World) -> None:
    await world.ask()
    changed_factory('"name":"quick"', '"name":"fast"')(world)
    assert (await world.ask()).done.cached


@pytest.mark.parametrize("case", ["blocked output", "cut off", "stored conversation"])
async def test_an_answer_is_not_cached_when(world: World, case: str) -> None:
    fields: dict[str, Any] = {}
    if case == "blocked output":
        world.safety.block = ("14",)
    elif case == "cut off":
        from genaifactory.modelserver.v1 import modelserver_pb2

        world.modelserver.script = [
            "You", modelserver_pb2.GenerateResponse(finish_reason=types_pb2.FINISH_REASON_LENGTH),
        ]  # fmt: skip
    else:
        fields["conversation_id"] = "c1"
    await world.ask(**fields)
    world.safety.block = ()
    assert not (await world.ask()).done.cached


async def test_a_masked_question_is_cached_by_its_masked_text_alone(world: World, tmp_path: Path) -> None:
    world.safety.mask = {"0912345678": "<PHONE>", "0987654321": "<PHONE>"}
    await world.ask("Call 0912345678?")
    assert (await world.ask("Call 0987654321?")).done.cached
    world.safety.mask = {}
    assert not (await world.ask("Call 0912345678?")).done.cached, "the original text is no key"


async def test_answers_survive_a_restart_with_their_hits(make_world: MakeWorld, tmp_path: Path) -> None:
    async with make_world() as world:
        await world.ask()
        await world.ask()
    async with make_world() as world:
        assert (await world.ask()).done.cached
        assert not world.modelserver.requests
    columns = "tenant, question, output, model, prompt_version, hits, correctness, created_at"
    ((*fields, created_at),) = await rows(tmp_path / "orchestrator" / "cache.db", f"SELECT {columns} FROM entries")
    assert fields == ["acme", "How many days of leave?", "You have 14 days [1].", "small", "rag@2", 2, "unknown"]
    assert abs(time.time() - created_at) < 60


async def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(lambda: sqlite3.connect(path).execute(query).fetchall())


def entry(key: str, *, output: str = "x", created_at: float | None = None, max_age: float = 60) -> Entry:
    now = time.time() if created_at is None else created_at
    return Entry(key, "acme", "q", output, "m", "p@1", "", False, b"", now, now + max_age)


async def opened(path: Path, **bounds: Any) -> Cache:
    answers = Cache(path / "cache.db", settings.Cache(**bounds), Space("orchestrator", path, common_settings.Space()))
    await answers.open()
    return answers


async def test_memory_keeps_the_last_used_entries_within_its_bytes(tmp_path: Path) -> None:
    one = entry("a", output="x" * 1000)
    answers = await opened(tmp_path, memory_bytes=2 * one.size, disk_entries=0)
    for key in ("a", "b"):
        answers.store(replace(one, key=key))
    assert await answers.look_up("a", max_age_seconds=60)
    answers.store(replace(one, key="c"))
    assert await answers.look_up("b", max_age_seconds=60) is None
    assert await answers.look_up("a", max_age_seconds=60)
    await answers.close()


async def test_the_disk_keeps_the_last_used_entries_within_its_number(tmp_path: Path) -> None:
    answers = await opened(tmp_path, memory_bytes=0, disk_entries=2)
    for key in ("a", "b"):
        answers.store(entry(key))
    await answers.upkeep()
    answers.count(await answers.look_up("a", max_age_seconds=60))
    await answers.upkeep()
    answers.store(entry("c"))
    await answers.upkeep()
    found = [key for key in "abc" if await answers.look_up(key, max_age_seconds=60)]
    assert found == ["a", "c"]
    await answers.close()


async def test_an_old_answer_is_not_used_and_is_deleted_from_disk(tmp_path: Path) -> None:
    answers = await opened(tmp_path, memory_bytes=0)
    answers.store(entry("old", created_at=time.time() - 61))
    answers.store(entry("young", created_at=time.time() - 30))
    assert await answers.look_up("old", max_age_seconds=60) is None
    await answers.upkeep()
    assert await answers.look_up("young", max_age_seconds=60)
    assert await answers.look_up("young", max_age_seconds=20) is None, "a route may shorten its age"
    await answers.close()
    assert await rows(tmp_path / "cache.db", "SELECT key FROM entries") == [("young",)]


async def test_a_damaged_file_is_created_again(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "cache.db").write_bytes, b"this is no database" * 1000)
    answers = await opened(tmp_path)
    answers.store(entry("a"))
    await answers.upkeep()
    assert await answers.look_up("a", max_age_seconds=60)
    await answers.close()


async def test_a_second_process_cannot_open_the_file(tmp_path: Path) -> None:
    answers = await opened(tmp_path)
    with pytest.raises(Unavailable, match="one process"):
        await opened(tmp_path)
    await answers.close()


async def test_a_long_answer_is_not_stored(tmp_path: Path) -> None:
    answers = await opened(tmp_path, max_entry_bytes=2000)
    answers.store(entry("a", output="x" * 3000))
    assert await answers.look_up("a", max_age_seconds=60) is None
    await answers.close()


def test_texts_that_look_the_same_have_one_form() -> None:
    assert cache.normalised(" hoà\r\nbình ") == cache.normalised("hoà\nbình")
    assert cache.normalised("a  b") != cache.normalised("a b"), "white space inside may be code"
