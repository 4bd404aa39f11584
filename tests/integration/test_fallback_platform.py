"""The whole platform in front of an OpenAI-compatible API that fails in every way, through the official openai client.

The answer comes from the fallback, once, without a gap or a repeated piece, or the error is clear; and the monitor's
record lists every attempt.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.openai_upstream import (
    Reply,
    Step,
    Upstream,
    answer,
    event,
    failure,
    text,
)
from genaifactory_local import testing
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = "Hợp đồng có hiệu lực từ ngày ký kết, trừ khi hai bên thoả thuận khác."
BEGUN = ("Hợp đồng có ", "hiệu lực ")
FIRST = "".join(BEGUN)
REST = ("từ ngày ký kết, ", "trừ khi hai bên ", "thoả thuận khác.")
WORDS = "said-by-an-upstream-in-confidence"  # in the errors of upstreams; no client may receive it

KEY = "sk-user-0123456789"
FACTORY = f"""
tenants: [{{name: dev, keys: [{{id: user, sha256: {specs.hash_key(KEY)}, role: user}}]}}]
roles: [{{name: user, permissions: [chat]}}]
models:
  - &first
    name: first
    backend: {{type: openai, base_url: "FIRST", model: one}}
    retry: {{attempts: 2, initial_backoff_seconds: 0.01, max_backoff_seconds: 0.05}}
    circuit_breaker: {{failures: 100000}}
  # Short timeouts only where the API hangs, so that a busy machine is not mistaken for a hanging API.
  - {{<<: *first, name: hasty, first_token_timeout_seconds: 0.3, idle_timeout_seconds: 0.3}}
  - {{<<: *first, name: second, backend: {{type: openai, base_url: "SECOND", model: two}}}}
  - {{<<: *first, name: exact, backend: {{type: openai, base_url: "SECOND", model: two, dialect: vllm}}}}
  - {{name: extractive, backend: {{type: modelserver, model: extractive}}}}
routes:
  - &route {{name: chat, task: chat, models: [first, second], cache: {{enabled: false}}}}
  - {{<<: *route, name: chat-hasty, models: [hasty, second]}}
  - {{<<: *route, name: chat-exact, models: [first, exact]}}
  - {{<<: *route, name: chat-exact-hasty, models: [hasty, exact]}}
  - {{<<: *route, name: alone, models: [first]}}
  - {{<<: *route, name: alone-hasty, models: [hasty]}}
  - {{<<: *route, name: strict, policy: strict}}
  - {{<<: *route, name: rag, task: rag, prompt: rag, knowledge_base: documents, models: [first, extractive]}}
  - {{<<: *route, name: rag-extractive, task: rag, prompt: rag, knowledge_base: documents, models: [extractive]}}
prompts: [{{name: rag, version: 1, system: "{{{{passages | length}}}} passages"}}]
knowledge_bases: [{{name: documents}}]
policies:
  - {{name: default, rules: [{{entities: [SECRET, PII], output: mask}}]}}
  - {{name: strict, rules: [{{entities: [SECRET, PII], output: block}}]}}
"""


@dataclass(frozen=True)
class Failing:
    """A way in which an API fails."""

    reply: Reply
    reason: str
    """How the attempt is recorded."""
    status: str = "503 upstream_failed"
    """HTTP status and code when there is no fallback."""
    hangs: bool = False

    @property
    def suffix(self) -> str:
        """Of the names of routes with timeouts that fit."""
        return "-hasty" if self.hangs else ""


GARBAGE = b"data: {nope\n\n"
ERROR_EVENT = event({"error": {"message": WORDS, "type": "server_error", "code": 500}})
BEFORE = {
    "429 with a short Retry-After": Failing(
        failure(429, message=WORDS, retry_after="0"), "RATE_LIMITED", "503 overloaded"
    ),
    "429 with a long Retry-After": Failing(
        failure(429, message=WORDS, retry_after="3600"), "RATE_LIMITED", "503 overloaded"
    ),
    "500": Failing(failure(500, message=WORDS), "UPSTREAM_FAILED"),
    "502 with a page": Failing(Reply((f"<html>{WORDS}".encode(),), 502, "text/html"), "UPSTREAM_FAILED"),
    "401": Failing(failure(401, message=WORDS), "UNAUTHENTICATED"),
    "404": Failing(failure(404, message=WORDS), "MODEL_NOT_FOUND"),
    "a hang before the headers": Failing(Reply(early=(Step.HANG,)), "DEADLINE_EXCEEDED", hangs=True),
    "a hang after the headers": Failing(Reply((*text(), Step.HANG)), "DEADLINE_EXCEEDED", hangs=True),
    "a reset before the headers": Failing(Reply(early=(Step.RESET,)), "UPSTREAM_FAILED"),
    "a reset after the headers": Failing(Reply((*text(), Step.RESET)), "UPSTREAM_FAILED"),
    "a body cut off": Failing(Reply((*text(), Step.CLOSE)), "UPSTREAM_FAILED"),
    "an empty stream": Failing(Reply(), "UPSTREAM_FAILED"),
    "a malformed chunk": Failing(Reply((GARBAGE,)), "UPSTREAM_FAILED"),
    "an error event": Failing(Reply((ERROR_EVENT,)), "UPSTREAM_FAILED"),
    "a page instead of a stream": Failing(
        Reply((f"<html>{WORDS}".encode(),), content_type="text/html"), "UPSTREAM_FAILED"
    ),
}


def _breaking(*steps: bytes | Step, reason: str = "UPSTREAM_FAILED", hangs: bool = False) -> Failing:
    return Failing(Reply((*text(*BEGUN), *steps)), reason, hangs=hangs)


AFTER = {
    "a hang": _breaking(Step.HANG, reason="DEADLINE_EXCEEDED", hangs=True),
    "keep-alives and no token": _breaking(b": ping\n\n", Step.HANG, reason="DEADLINE_EXCEEDED", hangs=True),
    "a reset": _breaking(Step.RESET),
    "a body cut off": _breaking(Step.CLOSE),
    "an end without finish_reason": _breaking(b"data: [DONE]\n\n"),
    "a malformed chunk": _breaking(GARBAGE),
    "a chunk cut in two and never finished": _breaking(b'data: {"choices": [{"del', Step.CLOSE),
    "an error event": _breaking(ERROR_EVENT),
}
# How a model may continue an answer: route, pieces.
WAYS = {
    "continues": ("chat", REST),
    "repeats all": ("chat", (*FIRST, *REST)),  # the repeated text comes letter by letter
    "repeats the last words": ("chat", ("hiệu lực ", *REST)),
    "continues by a parameter of its API": ("chat-exact", REST),
}


@dataclass
class World:
    """A running platform, the client, and the two scripts that its models follow."""

    platform: Platform
    client: openai.AsyncOpenAI
    first: Upstream
    second: Upstream
    first_script: list[Reply]
    second_script: list[Reply]

    def script(self, first: Reply | list[Reply], second: Reply | None = None) -> None:
        """Sets the replies of the two APIs and clears their requests."""
        self.first_script[:] = first if isinstance(first, list) else [first]
        self.second_script[:] = [second or answer(ANSWER)]
        for upstream in (self.first, self.second):
            upstream.requests.clear()

    async def record(self, request_id: str) -> monitor_pb2.Interaction:
        """The monitor's record of the request, once it is stored."""
        self.platform.sign_in()
        request = monitor_pb2.QueryInteractionsRequest(filter=monitor_pb2.InteractionFilter(request_ids=[request_id]))
        async with asyncio.timeout(20), channels.connect(self.platform.endpoints.socket("monitor")) as channel:
            stub = monitor_pb2_grpc.MonitorServiceStub(channel)
            while True:
                found = await channels.unary(stub.QueryInteractions, request, timeout_seconds=10)
                if found.interactions:
                    (interaction,) = found.interactions
                    return interaction
                await asyncio.sleep(0.02)


@dataclass
class Received:
    """What the client received."""

    pieces: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    usage: openai.types.CompletionUsage | None = None
    error: openai.APIError | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def request_id(self) -> str:
        (only,) = self.ids
        return f"req-{only.rpartition('-')[2]}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("fallback")
    one: list[Reply] = [answer(ANSWER)]
    two: list[Reply] = [answer(ANSWER)]
    async with openai_upstream.serve(one) as first, openai_upstream.serve(two) as second:
        factory = folder / "factory.yaml"
        document = FACTORY.replace("FIRST", first.base_url).replace("SECOND", second.base_url)
        await asyncio.to_thread(factory.write_text, document, encoding="utf-8")
        options = Options(http_port=0, grpc_port=0)
        async with testing.running(folder / "state", factory=factory, options=options) as platform:
            await platform.ingest([testing.SAMPLE])
            client = await asyncio.to_thread(
                lambda: openai.AsyncOpenAI(base_url=platform.openai_url, api_key=KEY, max_retries=0, timeout=60)
            )
            async with client:
                yield World(platform, client, first, second, one, two)


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An upstream's failure is no internal error, and its text is not logged."""
    yield
    records = [record for phase in ("setup", "call") for record in caplog.get_records(phase)]
    assert not [record for record in records if record.exc_info]
    assert not [record for record in records if record.levelno >= logging.ERROR and "set up wrongly" not in record.msg]
    assert WORDS not in "".join(record.getMessage() for record in records)


async def _ask(world: World, route: str, *, stream: bool, question: str = "Khi nào hợp đồng có hiệu lực?") -> Received:
    received = Received()
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    try:
        if not stream:
            whole = await world.client.chat.completions.create(model=route, messages=messages)
            (only,) = whole.choices
            received.pieces.append(only.message.content or "")
            received.finish_reasons.append(only.finish_reason)
            received.ids.add(whole.id)
            received.usage = whole.usage
            return received
        chunks = await world.client.chat.completions.create(
            model=route, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        async for part in chunks:
            received.ids.add(part.id)
            received.usage = part.usage or received.usage
            for choice in part.choices:
                received.pieces.append(choice.delta.content or "")
                if choice.finish_reason:
                    received.finish_reasons.append(choice.finish_reason)
    except openai.APIError as error:
        received.error = error
        if isinstance(error, openai.APIStatusError):
            received.ids.add(str(error.request_id))
    return received


def _check_answered(received: Received, expected: str = ANSWER) -> None:
    assert received.error is None
    assert received.text == expected
    assert received.finish_reasons == ["stop"]


def _check_error(received: Received, *status_and_code: str) -> None:
    """One clear error, which names the model of factory.yaml and holds no text or address of the upstream."""
    error = received.error
    assert error is not None
    assert isinstance(error.body, dict)
    assert f"{getattr(error, 'status_code', 'streamed')} {error.body['code']}" in status_and_code
    assert "'first'" in error.message or "'hasty'" in error.message
    assert WORDS not in str(error.body)
    assert "127.0.0.1" not in str(error.body)


def _attempts(record: monitor_pb2.Interaction) -> list[tuple[str, str]]:
    return [(attempt.model, attempt.error_reason) for attempt in record.attempts]


def _named(table: Mapping[str, object]) -> list[ParameterSet]:
    return [pytest.param(value, id=name) for name, value in table.items()]


both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@both
@pytest.mark.parametrize("failing", _named(BEFORE))
class TestBeforeTheFirstToken:
    async def test_the_fallback_answers(self, world: World, failing: Failing, stream: bool) -> None:
        world.script(failing.reply)
        received = await _ask(world, f"chat{failing.suffix}", stream=stream)
        _check_answered(received)
        assert len(world.second.requests) == 1
        record = await world.record(received.request_id)
        first = "hasty" if failing.hangs else "first"
        tries = len(world.first.requests)
        assert 1 <= tries <= 2
        assert _attempts(record) == [(first, failing.reason)] * tries + [("second", "")]
        assert (record.model, record.output) == ("second", ANSWER)
        assert record.outcome == monitor_pb2.OUTCOME_ANSWERED
        assert received.usage is not None
        assert record.usage.completion_tokens == received.usage.completion_tokens == 5, (
            "only tokens of the answer are counted"
        )

    async def test_without_a_fallback_the_error_is_clear(self, world: World, failing: Failing, stream: bool) -> None:
        world.script(failing.reply)
        received = await _ask(world, f"alone{failing.suffix}", stream=stream)
        assert received.text == ""
        _check_error(received, failing.status)
        record = await world.record(received.request_id)
        assert record.outcome == monitor_pb2.OUTCOME_FAILED
        assert {reason for _, reason in _attempts(record)} == {failing.reason}
        assert WORDS not in record.error_message


@both
@pytest.mark.parametrize("failing", _named(AFTER))
class TestAfterTheFirstToken:
    @pytest.mark.parametrize("way", _named(WAYS))
    async def test_the_fallback_goes_on_without_a_gap_or_a_repetition(
        self, world: World, failing: Failing, way: tuple[str, tuple[str, ...]], stream: bool
    ) -> None:
        route, pieces = way
        world.script(failing.reply, answer(*pieces))
        received = await _ask(world, f"{route}{failing.suffix}", stream=stream)
        _check_answered(received)
        assert len(world.first.requests) == len(world.second.requests) == 1
        record = await world.record(received.request_id)
        first, second = "hasty" if failing.hangs else "first", "exact" if route == "chat-exact" else "second"
        assert _attempts(record) == [(first, failing.reason), (second, "")]
        assert (record.model, record.output) == (second, ANSWER)
        assert record.outcome == monitor_pb2.OUTCOME_ANSWERED
        assert record.time_to_first_token_us > 0
        asked = json.dumps(world.second.requests[0].body["messages"], ensure_ascii=False)
        assert FIRST.strip() in asked, "the fallback is sent the beginning of the answer"

    async def test_without_a_fallback_the_answer_is_cut_off_and_the_error_is_clear(
        self, world: World, failing: Failing, stream: bool
    ) -> None:
        world.script(failing.reply)
        received = await _ask(world, f"alone{failing.suffix}", stream=stream)
        _check_error(received, "streamed upstream_failed", "503 upstream_failed")
        assert received.error is not None
        assert "broke off" in received.error.message
        assert FIRST.startswith(received.text)
        assert received.finish_reasons == []
        assert len(world.first.requests) == 1, "a model that has begun is not called again"
        record = await world.record(received.request_id)
        assert record.outcome == monitor_pb2.OUTCOME_FAILED
        assert record.error_reason == "UPSTREAM_FAILED"
        assert FIRST.startswith(record.output)
        assert [reason for _, reason in _attempts(record)] == [failing.reason]


@both
async def test_a_model_that_fails_once_is_called_again_and_no_other_is(world: World, stream: bool) -> None:
    world.script([failure(429, retry_after="0"), answer(ANSWER)])
    received = await _ask(world, "chat", stream=stream)
    _check_answered(received)
    assert _attempts(await world.record(received.request_id)) == [("first", "RATE_LIMITED"), ("first", "")]
    assert world.second.requests == []


@both
async def test_when_all_models_are_busy_the_error_has_retry_after(world: World, stream: bool) -> None:
    world.script(failure(429, retry_after="3600"), failure(429, retry_after="1800"))
    received = await _ask(world, "chat", stream=stream)
    assert isinstance(received.error, openai.InternalServerError)
    assert received.error.response.status_code == 503
    assert received.error.code == "overloaded"
    assert received.error.response.headers["retry-after"] == "1800"


@both
async def test_when_all_models_break_off_the_error_is_clear(world: World, stream: bool) -> None:
    world.script(Reply((*text(*BEGUN), Step.RESET)), Reply((*text("từ ngày "), Step.RESET)))
    received = await _ask(world, "chat", stream=stream)
    assert received.error is not None
    assert "broke off in its middle" in received.error.message
    assert ANSWER.startswith(received.text)
    assert _attempts(await world.record(received.request_id)) == [
        ("first", "UPSTREAM_FAILED"),
        ("second", "UPSTREAM_FAILED"),
    ]


class TestDocuments:
    QUESTION = "How many days of annual leave do I have?"

    @both
    async def test_a_question_about_documents_is_answered_by_the_platforms_own_model(
        self, world: World, stream: bool
    ) -> None:
        world.script(failure(500))
        received = await _ask(world, "rag", stream=stream, question=self.QUESTION)
        own = await _ask(world, "rag-extractive", stream=stream, question=self.QUESTION)
        _check_answered(received, own.text)
        assert "16 days of paid annual leave" in received.text
        record = await world.record(received.request_id)
        assert record.model == "extractive"
        assert [citation.number for citation in record.citations] == [1]

    async def test_a_citation_mark_that_one_model_began_is_completed_by_the_next(self, world: World) -> None:
        whole = (await _ask(world, "rag-extractive", stream=False, question=self.QUESTION)).text
        for end in (whole.index("[1") + 1, whole.index("[1") + 2, whole.index("annual") + 3):
            world.script(Reply((*text(whole[:end]), Step.RESET)))
            received = await _ask(world, "rag", stream=True, question=self.QUESTION)
            _check_answered(received, whole)
            assert [c.number for c in (await world.record(received.request_id)).citations] == [1]


SENSITIVE = {
    "an access key": "AKIAQ7ZK3M5XN2WB8RTD",
    "a token": "ghp_x7Kq2mVt9RbN4cLw8ZsYp3HdJf6GuAeTi1Xo",
    "an address": "nguyen.van.an@congty-vidu.vn",
    "a number": "001099012345",
}


# Letter by letter up to an exact place, where the connection is closed: a reset may lose what was sent just before.
@pytest.mark.parametrize("value", _named(SENSITIVE))
class TestAGuardedValueThatTwoModelsWrite:
    def _text_with(self, value: str) -> str:
        return f"Thông tin của bạn, số CCCD hoặc khoá, là {value} nhé. Xin giữ kín."

    async def test_is_never_released_wherever_the_first_model_breaks_off(self, world: World, value: str) -> None:
        written = self._text_with(value)
        world.script(answer(written))
        whole = (await _ask(world, "chat", stream=False)).text
        assert value not in whole
        start = written.index(value)
        for cut in range(start - 1, start + len(value) + 1):
            begun, rest = written[:cut], written[cut:]
            route, pieces = [("chat", [rest]), ("chat", [*written]), ("chat-exact", [rest[:3], rest[3:]])][cut % 3]
            world.script(Reply((*text(*begun), Step.CLOSE)), answer(*pieces))
            received = await _ask(world, route, stream=True)
            _check_answered(received, whole)
        assert (await world.record(received.request_id)).output == whole

    async def test_is_never_released_when_no_model_continues(self, world: World, value: str) -> None:
        written = self._text_with(value)
        half = value[: len(value) // 2]
        world.script(Reply((*text(*written[: written.index(value)], *half), Step.CLOSE)))
        received = await _ask(world, "alone", stream=True)
        assert received.error is not None
        assert half[:4] not in received.text
        assert half[:4] not in (await world.record(received.request_id)).output

    @both
    async def test_ends_the_answer_where_the_policy_blocks(self, world: World, value: str, stream: bool) -> None:
        written = self._text_with(value)
        cut = written.index(value) + len(value) // 2
        world.script(Reply((*text(*written[:cut]), Step.CLOSE)), answer(*written[cut:]))
        received = await _ask(world, "strict", stream=stream)
        assert received.error is None
        assert received.finish_reasons == ["content_filter"]
        assert value[:4] not in received.text
        record = await world.record(received.request_id)
        assert record.outcome == monitor_pb2.OUTCOME_BLOCKED
        assert record.verdicts[-1].action == types_pb2.ACTION_BLOCK
        assert value[:4] not in str(record)
