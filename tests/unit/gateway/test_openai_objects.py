"""The official client parses answers of a scripted orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import UpstreamFailed
from genaifactory_common.testing import orchestrator as script
from tests.unit.gateway.conftest import Gateway

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Xin chào?"}]
TOOLS: list[ChatCompletionToolUnionParam] = [
    {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of the gateway."""
    made = await asyncio.to_thread(
        lambda: openai.AsyncOpenAI(base_url=gateway.base_url, api_key="sk-acme-user", max_retries=0)
    )
    async with made:
        yield made


async def test_citations_are_annotations(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    citation = types_pb2.Citation(number=1, title="T", uri="guide.md", start_offset=2, end_offset=5)
    gateway.orchestrator.script = [script.delta("a [1]"), script.done(citations=[citation])]
    message = (await client.chat.completions.create(model="chat", messages=QUESTION)).choices[0].message
    assert message.annotations is not None
    found = message.annotations[0].url_citation
    assert (found.url, found.title, found.start_index, found.end_index) == ("guide.md", "T", 2, 5)
    # The message is accepted unchanged in the next turn of the conversation.
    follow_up: Any = [*QUESTION, message.model_dump(), *QUESTION]
    await client.chat.completions.create(model="chat", messages=follow_up)


async def test_the_ingestion_progress_is_in_the_completion_and_in_a_stream_s_last_chunk(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    done = script.done()
    done.done.reading.documents_done, done.done.reading.documents_total = 84, 168
    gateway.orchestrator.script = [script.delta("a"), done]
    whole = await client.chat.completions.create(model="chat", messages=QUESTION)
    assert whole.model_extra == {"reading": {"documents_done": 84, "documents_total": 168}}
    stream = await client.chat.completions.create(
        model="chat", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    ends = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert [chunk.model_extra for chunk in ends] == [whole.model_extra]
    assert chunks[-1].usage is not None


async def test_the_clients_own_stream_helper_joins_tool_calls(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.orchestrator.script = [
        script.tool_call(call_id="c1", name="search", arguments='{"q":'),
        script.tool_call(arguments='"gạo"}'),
        script.done(finish_reasons=[types_pb2.FINISH_REASON_TOOL_CALLS]),
    ]
    async with client.chat.completions.stream(model="chat", messages=QUESTION, tools=TOOLS) as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert calls is not None
    assert (calls[0].id, calls[0].function.name, calls[0].function.arguments) == ("c1", "search", '{"q":"gạo"}')


async def test_log_probabilities_are_parsed(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    token = types_pb2.TokenLogprob(token="có", logprob=-0.5)
    gateway.orchestrator.script = [script.delta("có", logprobs=[token]), script.done()]
    choice = (await client.chat.completions.create(model="chat", messages=QUESTION, logprobs=True)).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert (choice.logprobs.content[0].token, choice.logprobs.content[0].logprob) == ("có", -0.5)


async def test_an_error_within_a_stream_raises_api_error(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.orchestrator.script = [script.delta("Xin "), UpstreamFailed("No model could go on.")]
    stream = await client.chat.completions.create(model="chat", messages=QUESTION, stream=True)
    pieces = [(await anext(aiter(stream))).choices[0].delta.content for _ in range(2)]
    assert pieces == ["", "Xin "]
    with pytest.raises(openai.APIError, match="No model could go on") as failed:
        await anext(aiter(stream))
    assert failed.value.code == "upstream_failed"


async def test_closing_the_clients_stream_cancels_the_work(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.orchestrator.script = [script.delta("Xin "), asyncio.Event()]
    stream = await client.chat.completions.create(model="chat", messages=QUESTION, stream=True)
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(10):
        await gateway.orchestrator.cancelled.wait()


async def test_the_official_client_parses_what_was_masked(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    gateway.orchestrator.script = lambda _: [script.opened(script.delta("a"), masked={"VN_CCCD": 1}), script.done()]
    whole = await client.chat.completions.create(model="chat", messages=QUESTION)
    stream = await client.chat.completions.create(model="chat", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    for part in (whole, chunks[0]):
        extra = part.model_extra
        assert extra is not None
        assert extra == {"cache": "miss", "masked": [{"entity_type": "VN_CCCD", "count": 1}]}
    raw = await client.chat.completions.with_raw_response.create(model="chat", messages=QUESTION)
    assert raw.headers["x-genaifactory-masked"] == "VN_CCCD=1"
