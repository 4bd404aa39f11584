"""Images on the path of an answer: only where the policy allows them, only to models with vision, and never stored."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import images
from genaifactory_common.errors import ContentBlocked, InvalidArgument
from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.images import image, png
from genaifactory_common.testing.openai_upstream import Upstream
from tests.unit.orchestrator.conftest import MakeWorld, World

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models:
  - {name: blind, backend: {type: modelserver, model: small}, retry: {attempts: 1}}
  - {name: sees, vision: true, backend: {type: openai, base_url: "URL", model: m}, retry: {attempts: 1}}
routes:
  - {name: chat, task: chat, models: [blind, sees], policy: open}
  - {name: rag, task: rag, models: [blind, sees], prompt: rag, knowledge_base: docs, policy: open}
  - {name: guarded, task: chat, models: [sees]}
  - {name: blind, task: chat, models: [blind], policy: open}
prompts: [{name: rag, version: 1, system: "{{ passages | length }} passages"}]
knowledge_bases: [{name: docs}]
policies:
  - {name: default, rules: [{entities: [PII]}]}
  - {name: open, rules: [{entities: [PII]}], images: allow}
"""
GREEDY = types_pb2.Sampling(temperature=0)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with openai_upstream.serve([openai_upstream.answer("A red ", "square.")]) as serving:
        yield serving


@pytest.fixture
async def seeing(make_world: MakeWorld, upstream: Upstream) -> AsyncIterator[World]:
    async with make_world(FACTORY.replace("URL", upstream.base_url)) as world:
        yield world


def shows(content: str = "What is it?", *shown: types_pb2.Image) -> list[types_pb2.Message]:
    return [types_pb2.Message(role=types_pb2.ROLE_USER, content=content, images=shown or [image()])]


async def test_images_are_sent_to_the_first_model_with_vision_and_texts_to_the_first_model(
    seeing: World, upstream: Upstream
) -> None:
    close = image(detail=types_pb2.Image.DETAIL_HIGH)
    answer = await seeing.ask(route="chat", messages=shows("What is it?", close))
    assert (answer.text(), answer.done.model, answer.events[0].route.model) == ("A red square.", "sees", "sees")
    (content,) = [message["content"] for message in upstream.requests[0].body["messages"]]
    assert content == [
        {"type": "image_url", "image_url": {"url": images.data_url(image()), "detail": "high"}},
        {"type": "text", "text": "What is it?"},
    ]
    assert (await seeing.ask("What is it?", route="chat")).done.model == "blind"


async def test_a_route_without_a_model_with_vision_is_an_error(seeing: World) -> None:
    error, record = await seeing.failure(route="blind", messages=shows())
    assert (type(error), error.field) == (InvalidArgument, "messages[0].images[0]")
    assert record.outcome == monitor_pb2.OUTCOME_FAILED


async def test_images_are_blocked_unless_the_policy_allows_them(seeing: World, upstream: Upstream) -> None:
    error, record = await seeing.failure(route="guarded", messages=shows())
    assert (type(error), error.field) == (ContentBlocked, "messages[0].images[0]")
    assert "'default' cannot scan images" in error.message
    assert record.outcome == monitor_pb2.OUTCOME_BLOCKED
    (verdict,) = record.verdicts
    assert [(f.entity_type, f.action) for f in verdict.findings] == [("IMAGE", types_pb2.ACTION_BLOCK)]
    assert not upstream.requests


async def test_the_record_has_a_verdict_without_scanners_for_an_image(seeing: World) -> None:
    request = seeing.request(route="chat", messages=shows())
    await seeing.send(request)
    verdicts = (await seeing.recorded(request.request_id)).verdicts
    assert [(v.policy, list(v.scanners)) for v in verdicts if not v.scanners] == [("open", [])]
    assert len([v for v in verdicts if v.scanners]) == 2  # the question and the answer


async def test_an_images_tokens_are_estimated_where_the_model_reports_no_usage(make_world: MakeWorld) -> None:
    async with (
        openai_upstream.serve([openai_upstream.answer("Red.", usage=None)]) as silent,
        make_world(FACTORY.replace("URL", silent.base_url)) as world,
    ):
        answer = await world.ask(route="chat", messages=shows())
    assert answer.done.usage.prompt_tokens == 1445 + 4 + 3


async def test_the_text_beside_an_image_is_masked_and_the_image_keeps_its_place(
    seeing: World, upstream: Upstream
) -> None:
    seeing.safety.mask = {"0912345678": "<FAKE_MASKED>"}
    text = "I am 0912345678.\nWho is this?"
    await seeing.ask(route="chat", messages=shows(text, image(position=16)))
    (content,) = [message["content"] for message in upstream.requests[0].body["messages"]]
    assert [part.get("text") for part in content] == ["I am <FAKE_MASKED>.", None, "Who is this?"]
    assert (types_pb2.DIRECTION_INPUT, text) in seeing.safety.checked


async def test_text_beside_an_image_is_blocked(seeing: World, upstream: Upstream) -> None:
    seeing.safety.block = ("bomb",)
    error, _ = await seeing.failure(route="chat", messages=shows("a bomb?"))
    assert isinstance(error, ContentBlocked)
    assert not upstream.requests


async def test_passages_are_searched_by_the_text_and_the_model_gets_the_image(
    seeing: World, upstream: Upstream
) -> None:
    answer = await seeing.ask(route="rag", messages=shows("How many days of leave does this form say?"))
    assert answer.text() == "A red square."
    assert [search.query for search in seeing.retriever.searches] == ["How many days of leave does this form say?"]
    system, asked = upstream.requests[0].body["messages"]
    assert system["content"].startswith("2 passages")
    assert [part["type"] for part in asked["content"]] == ["image_url", "text"]


async def test_a_cached_answer_is_used_only_for_the_same_image(seeing: World, upstream: Upstream) -> None:
    for data, cached in ((png(), False), (png(), True), (png(colour=b"\x00\x00\xff"), False)):
        answer = await seeing.ask(route="chat", messages=shows("What?", image(data)), sampling=GREEDY)
        assert answer.done.cached == cached
    assert len(upstream.requests) == 2


async def test_the_record_has_a_digest_instead_of_the_bytes(seeing: World) -> None:
    request = seeing.request(route="chat", messages=shows())
    await seeing.send(request)
    record = await seeing.recorded(request.request_id)
    (kept,) = record.input[0].images
    assert (kept.media_type, kept.data) == ("image/png", b"")
    assert kept.digest == types_pb2.ImageDigest(sha256=hashlib.sha256(png()).hexdigest(), size_bytes=len(png()))
    assert png() not in record.SerializeToString()


async def test_a_stored_conversation_accepts_no_images(seeing: World, upstream: Upstream) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await seeing.ask(route="chat", messages=shows(), conversation_id="c")
    assert caught.value.field == "conversation_id"
    assert not upstream.requests
