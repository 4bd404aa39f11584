"""Requests of an evaluation: a candidate answers beside production, and leaves no trace in what production serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import prometheus_client
import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable, UpstreamFailed
from genaifactory_common.testing import CALLER, act_as
from tests.unit.orchestrator.conftest import FACTORY, MakeWorld, World

EVALUATOR = replace(CALLER, permissions=(*CALLER.permissions, "evaluate"))
SEVERAL = (
    FACTORY.replace(
        "prompts:\n",
        """prompts:
  - {name: rag, version: 1, system: "The first version."}
  - {name: secret, version: 1, system: "Only for others."}
""",
    )
    .replace(
        "models:\n",
        "models:\n  - {name: hosted, backend: {type: openai, base_url: 'http://127.0.0.1:9/v1', model: m}}\n",
        1,
    )
    .replace("routes:\n", "routes:\n  - {name: hosted, task: chat, models: [hosted]}\n", 1)
)


@pytest.fixture
async def world(make_world: MakeWorld) -> AsyncIterator[World]:
    async with make_world(SEVERAL) as made:
        act_as(EVALUATOR)
        yield made


def evaluation(**fields: str) -> dict[str, Any]:
    return {"evaluation": types_pb2.Evaluation(**{"run": "eval-1", **fields})}


async def test_adapter_prompt_and_index_of_the_candidate_answer_and_are_recorded(world: World) -> None:
    request = world.request(**evaluation(adapter="leave-7", prompt="rag@1", index_version="v0"))
    assert (await world.send(request)).text() == "You have 14 days [1]."
    (sent,) = world.modelserver.requests
    assert sent.model == "leave-7"
    assert sent.conversation.messages[0].content.startswith("The first version.")
    assert [search.index_version for search in world.retriever.searches] == ["v0"]
    record = await world.recorded(request.request_id)
    assert (record.evaluation, record.adapter, record.model) == ("eval-1", "leave-7", "small")
    assert record.prompt_version == "rag@1"
    assert record.cost_micros == 10 * 1 + 5 * 2  # at the model's price


async def test_production_answers_an_evaluation_that_names_nothing(world: World) -> None:
    request = world.request(**evaluation())
    await world.send(request)
    (sent,) = world.modelserver.requests
    assert sent.model == "small"
    assert [search.index_version for search in world.retriever.searches] == [""]
    record = await world.recorded(request.request_id)
    assert (record.evaluation, record.adapter, record.prompt_version) == ("eval-1", "", "rag@2")


async def test_metrics_of_what_users_get_leave_evaluations_out(world: World) -> None:
    async def counted() -> list[float | None]:
        return [
            await asyncio.to_thread(prometheus_client.REGISTRY.get_sample_value, name, labels)
            for name, labels in (
                ("genaifactory_answers_total", {"route": "rag", "outcome": "answered"}),
                ("genaifactory_first_text_seconds_count", {"route": "rag"}),
            )
        ]

    await world.ask()
    before = await counted()
    await world.ask(**evaluation())
    assert await counted() == before
    await world.ask()
    assert await counted() == [count and count + 1 for count in before]
    assert all(before)


async def test_the_text_of_passages_goes_to_an_evaluation_and_to_nobody_else(world: World) -> None:
    evaluated = await world.ask(**evaluation())
    assert [passage.text for passage in evaluated.done.passages] == [p.text for p in world.retriever.passages]
    assert evaluated.done.passages
    assert not (await world.ask()).done.passages


async def test_another_model_of_factory_yaml_answers_without_the_routes_own(world: World) -> None:
    world.modelserver.scripts["spare"] = ["I am the spare."]
    assert (await world.ask(**evaluation(model="spare"))).done.model == "spare"
    await world.ask(route="hosted", **evaluation(model="small", adapter="leave-7"))
    assert [request.model for request in world.modelserver.requests] == ["spare", "leave-7"]


@pytest.mark.parametrize("fields", [{}, {"adapter": "leave-7"}])
async def test_no_fallback_answers_for_a_candidate_that_fails(world: World, fields: dict[str, str]) -> None:
    world.modelserver.scripts["spare"] = ["I am the spare."]
    world.modelserver.script = [Unavailable("away")]
    with pytest.raises(UpstreamFailed):
        await world.ask(**evaluation(**fields))
    assert "spare" not in [request.model for request in world.modelserver.requests]


async def test_an_evaluation_neither_reads_the_cache_nor_fills_it(world: World) -> None:
    world.modelserver.scripts["leave-7"] = ["Of the candidate."]
    for fields in ({}, {"adapter": "leave-7"}):
        answer = await world.ask(**evaluation(**fields))
        assert answer.events[0].opened.cache == types_pb2.CACHE_USE_BYPASS
    assert not (await world.ask()).done.cached
    cached = await world.ask()
    assert cached.done.cached
    assert cached.text() == "You have 14 days [1]."
    assert (await world.ask(**evaluation(adapter="leave-7"))).text() == "Of the candidate."
    assert (await world.ask()).text() == "You have 14 days [1]."


async def test_failures_of_an_adapter_do_not_open_the_circuit_of_its_model(make_world: MakeWorld) -> None:
    breaking = FACTORY.replace(
        "{type: modelserver, model: small},", "{type: modelserver, model: small}, circuit_breaker: {failures: 1},"
    )
    async with make_world(breaking) as world:
        act_as(EVALUATOR)
        world.modelserver.scripts["leave-7"] = [Unavailable("away")]
        for _ in range(2):
            with pytest.raises(UpstreamFailed):
                await world.ask(**evaluation(adapter="leave-7"))
        assert (await world.ask(route="chat", sampling=types_pb2.Sampling(seed=1))).done.model == "small"


async def test_an_adapter_that_is_not_loaded_is_the_clients_mistake(world: World) -> None:
    world.modelserver.scripts["leave-8"] = [NotFound("There is no model 'leave-8'.")]
    with pytest.raises(InvalidArgument, match="serves no adapter 'leave-8'; load it first") as raised:
        await world.ask(**evaluation(adapter="leave-8"))
    assert raised.value.field == "evaluation.adapter"


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        (evaluation(run=""), "evaluation.run", "1 to 128"),
        (evaluation(run="a b"), "evaluation.run", "1 to 128"),
        (evaluation() | {"conversation_id": "c"}, "conversation_id", "stores no conversation"),
        (evaluation(adapter="x" * 129), "evaluation.adapter", "at most 128"),
        (evaluation(adapter="nguyen.van.an@example.com asked\nthis"), "evaluation.adapter", "must be a name"),
        (evaluation(index_version="v0\n"), "evaluation.index_version", "must be a name"),
        (evaluation(model="minilm"), "evaluation.model", "no chat model 'minilm'"),
        (evaluation(model="larger"), "evaluation.model", "no chat model 'larger'"),
        (evaluation(model="hosted", adapter="leave-7"), "evaluation.adapter", "not at the model server"),
        (evaluation(adapter="leave-7") | {"route": "hosted"}, "evaluation.adapter", "No model of the route"),
        (evaluation(prompt="rag@3"), "evaluation.prompt", "rag@1, rag@2"),
        (evaluation(prompt="rag"), "evaluation.prompt", "rag@1, rag@2"),
        (evaluation(prompt="rag@1") | {"route": "chat"}, "evaluation.prompt", "none"),
        (evaluation(index_version="v0") | {"route": "chat"}, "evaluation.index_version", "searches no documents"),
    ],
)
async def test_a_wrong_evaluation_is_refused(world: World, fields: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as raised:
        await world.ask(**fields)
    assert raised.value.field == field
    assert not world.modelserver.requests


async def test_the_prompt_of_another_route_cannot_be_read_through_an_evaluation(world: World) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await world.ask(**evaluation(prompt="secret@1"))
    assert raised.value.field == "evaluation.prompt"
    assert not world.modelserver.requests


async def test_a_caller_without_the_permission_is_refused(world: World) -> None:
    act_as(CALLER)
    with pytest.raises(PermissionDenied, match="'evaluate'"):
        await world.ask(**evaluation(adapter="leave-7"))
    assert not world.modelserver.requests
