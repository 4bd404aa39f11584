"""A model that fails in every way: the answer comes from the fallback, once and whole, or the error is clear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors, specs, testing
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_common.testing.modelserver import Step as ModelServerStep
from genaifactory_common.testing.openai_upstream import (
    Reply,
    Step,
    Steps,
    Upstream,
    answer,
    chunk,
    event,
    failure,
    text,
)
from genaifactory_orchestrator.models.backend import Delta, Prompt, Usage
from genaifactory_orchestrator.models.client import Attempt, Event, Finished, ModelClient, Started

ANSWER = "Hợp đồng có hiệu lực từ ngày ký kết."
FIRST, REST = "Hợp đồng có hiệu", " lực từ ngày ký kết."
SECRET = "sk-not-to-be-seen"  # in the errors of upstreams

GARBAGE = b"data: {nope\n\n"
ERROR_EVENT = event({"error": {"message": SECRET, "type": "server_error", "code": 500}})
BEFORE = {
    "429 with a short Retry-After": failure(429, message=SECRET, retry_after="0"),
    "429 with a long Retry-After": failure(429, message=SECRET, retry_after="3600"),
    "429 with a date as Retry-After": failure(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with a senseless Retry-After": failure(429, retry_after="soon"),
    "429 for an account without money": failure(429, code="insufficient_quota", message=SECRET),
    "500": failure(500, message=SECRET),
    "502 with a page": Reply((b"<html>" + SECRET.encode(),), 502, "text/html"),
    "503": failure(503, retry_after="0"),
    "408": failure(408),
    "401": failure(401, message=SECRET),
    "403": failure(403, message=SECRET),
    "404": failure(404, message=SECRET),
    "a redirect": failure(307, location="http://127.0.0.1:1/"),
    "an error that never ends": Reply((b"x", Step.HANG), 500),
    "a hang before the headers": Reply(early=(Step.HANG,)),
    "a hang after the headers": Reply((Step.HANG,)),
    "a hang after the role": Reply((*text(), Step.HANG)),
    "keep-alives and no token": Reply((b": ping\n\n", b": ping\n\n", Step.HANG)),
    "a reset before the headers": Reply(early=(Step.RESET,)),
    "a reset after the headers": Reply((b": ping\n\n", Step.RESET)),
    "a connection closed before the headers": Reply(early=(Step.CLOSE,)),
    "a body cut off": Reply((b": ping\n\n", Step.CLOSE)),
    "an empty stream": Reply(),
    "a stream of [DONE] alone": Reply((b"data: [DONE]\n\n",)),
    "a malformed chunk": Reply((GARBAGE,)),
    "a chunk that is no object": Reply((event(["a"]),)),
    "choices that are no list": Reply((event({"choices": {"0": 1}}),)),
    "a choice that was not asked for": Reply((chunk({"content": "a"}, index=7),)),
    "content that is no text": Reply((chunk({"content": 5}),)),
    "bytes that are no UTF-8": Reply((b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n',)),
    "an error event": Reply((ERROR_EVENT,)),
    "an event named error": Reply((b"event: error\ndata: {}\n\n",)),
    "a finish_reason of error": Reply((chunk(finish="error"),)),
    "a page instead of a stream": Reply((b"<html>",), content_type="text/html"),
    "a JSON body instead of a stream": openai_upstream.json_reply({"choices": []}),
    "a compressed stream": Reply((b"\x1f\x8b",), headers={"content-encoding": "gzip"}),
    "an event without end": Reply(tuple(b"data: " + b"a" * 1_000_000 for _ in range(6))),
}  # fmt: skip
AFTER = {
    "a hang": (Step.HANG,),
    "keep-alives and no token": (b": ping\n\n", Step.HANG),
    "a reset": (Step.RESET,),
    "a body cut off": (Step.CLOSE,),
    "an end without finish_reason": (),
    "[DONE] without finish_reason": (b"data: [DONE]\n\n",),
    "a malformed chunk": (GARBAGE,),
    "a chunk cut in two and never finished": (b'data: {"choices": [{"del', Step.CLOSE),
    "content that is no text": (chunk({"content": ["a"]}),),
    "an error event": (ERROR_EVENT,),
    "an error event for a bad request": (event({"error": {"message": SECRET, "code": 400}}),),
    "a finish_reason of error": (chunk(finish="error"),),
    "an event without end": tuple(b"data: " + b"a" * 1_000_000 for _ in range(6)),
}
FALLBACKS = ["modelserver", "vllm", "exact", "repeats all", "repeats the last words"]


@dataclass
class World:
    """A model client whose model `first` is scripted, and whose model `second` works."""

    client: ModelClient
    first: Upstream
    second: Upstream
    fake: FakeModelServer
    attempts: list[Attempt] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    async def ask(self, *chain: str, max_tokens: int | None = None) -> str:
        question = types_pb2.Message(role=types_pb2.ROLE_USER, content="Khi nào hợp đồng có hiệu lực?")
        return await self.ask_prompt(chain, Prompt((question,), sampling=types_pb2.Sampling(max_tokens=max_tokens)))

    async def ask_prompt(self, chain: Sequence[str], prompt: Prompt) -> str:
        stream = self.client.generate(chain, prompt, timeout_seconds=20, attempts=self.attempts)
        async with aclosing(stream) as events:
            async for found in events:
                self.events.append(found)
        return self.text

    @property
    def text(self) -> str:
        return "".join(found.text for found in self.events if isinstance(found, Delta))


def hangs(reply: Reply) -> bool:
    """Whether the time for a first token has to run out."""
    return Step.HANG in (*reply.early, *reply.steps)


def factory(first_url: str, second_url: str, dialect: str, first_token_seconds: float) -> specs.Factory:
    # Short only where a model hangs, so that a busy machine is not mistaken for a hanging model.
    timeouts = f"first_token_timeout_seconds: {first_token_seconds}, idle_timeout_seconds: 0.3, retry: {{attempts: 2}}"
    return specs.parse(f"""
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat]}}]
policies: [{{name: default}}]
routes: [{{name: chat, task: chat, models: [first]}}]
models:
  - {{name: first, backend: {{type: openai, base_url: "{first_url}", model: m}}, {timeouts}}}
  - {{name: second, backend: {{type: openai, base_url: "{second_url}", model: n, dialect: {dialect}}}}}
  - {{name: local, backend: {{type: modelserver, model: extractive}}, {timeouts}}}
""")


class Begin(Protocol):
    async def __call__(
        self,
        first: Reply,
        second: Reply | None = None,
        *,
        dialect: str = "compatible",
        first_token_seconds: float = 20.0,
    ) -> World: ...


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Starts a world whose models `second` and `local` continue an answer or give a whole one."""
    async with AsyncExitStack() as stack:

        async def start(
            first: Reply,
            second: Reply | None = None,
            *,
            dialect: str = "compatible",
            first_token_seconds: float = 20.0,
        ) -> World:
            testing.act_as()
            fake = FakeModelServer()
            channel = await stack.enter_async_context(testing.served(fake.app(testing.VERIFIER)))
            one = await stack.enter_async_context(openai_upstream.serve([first]))
            two = await stack.enter_async_context(openai_upstream.serve([second or answer(ANSWER)]))

            async def no_wait(_: float) -> None:
                pass

            source = specs.Source(factory(one.base_url, two.base_url, dialect, first_token_seconds))
            client = ModelClient(source, channel, Telemetry("test"), sleep=no_wait)
            await stack.enter_async_context(client)
            return World(client, one, two, fake)

        yield start


def named(table: Mapping[str, object]) -> list[object]:
    return [pytest.param(value, id=name) for name, value in table.items()]


@pytest.mark.parametrize("reply", named(BEFORE))
class TestBeforeTheFirstToken:
    async def test_the_fallback_answers(self, begin: Begin, reply: Reply) -> None:
        world = await begin(reply, first_token_seconds=0.4 if hangs(reply) else 20.0)
        assert await world.ask("first", "second") == ANSWER
        assert [found for found in world.events if isinstance(found, Started)] == [Started("second")]
        assert isinstance(world.events[-1], Finished)
        assert world.events[-1].model == "second"
        assert world.attempts[-1].model == "second"
        assert all(attempt.error_reason for attempt in world.attempts[:-1])
        assert not any(attempt.usage.completion_tokens for attempt in world.attempts[:-1])

    async def test_without_a_fallback_the_error_is_clear_and_holds_no_text_of_the_upstream(
        self, begin: Begin, reply: Reply
    ) -> None:
        world = await begin(reply, first_token_seconds=0.4 if hangs(reply) else 20.0)
        with pytest.raises((errors.Unavailable, errors.Overloaded)) as caught:
            await world.ask("first")
        assert world.events == []
        assert "'first'" in caught.value.message
        assert SECRET not in caught.value.message
        assert world.first.base_url not in caught.value.message
        assert len(world.attempts) == len(world.first.requests) <= 2


@pytest.mark.parametrize("steps", named(AFTER))
class TestAfterTheFirstToken:
    @pytest.mark.parametrize("fallback", FALLBACKS)
    async def test_the_fallback_goes_on_without_a_gap_or_a_repetition(
        self, begin: Begin, steps: Steps, fallback: str
    ) -> None:
        first = Reply((*text("Hợp đồng ", "có hiệu"), *steps))
        dialect = "vllm" if fallback == "vllm" else "compatible"
        repeated = {"repeats all": FIRST, "repeats the last words": "đồng có hiệu"}.get(fallback, "")
        pieces = [*repeated, " lực từ", " ngày ký", " kết."]  # the repeated text comes letter by letter
        world = await begin(first, answer(*pieces), dialect=dialect)
        world.fake.script = pieces
        second = "local" if fallback == "modelserver" else "second"
        assert await world.ask("first", second) == ANSWER
        assert [found.model for found in world.events if isinstance(found, Started)] == ["first", second]
        finished = world.events[-1]
        assert isinstance(finished, Finished)
        assert finished.finish_reasons == (types_pb2.FINISH_REASON_STOP,)
        assert finished.model == second
        assert len(world.first.requests) == 1, "a model that has begun is not called again"
        assert [bool(attempt.error_reason) for attempt in world.attempts] == [True, False]
        assert finished.usage == world.attempts[0].usage + world.attempts[1].usage
        assert finished.usage.estimated
        asked = _continuation_asked(world, second)
        assert asked == FIRST

    async def test_without_a_fallback_the_error_is_clear_after_the_text_so_far(
        self, begin: Begin, steps: Steps
    ) -> None:
        world = await begin(Reply((*text("Hợp đồng ", "có hiệu"), *steps)))
        with pytest.raises(errors.UpstreamFailed, match="broke off in its middle") as caught:
            await world.ask("first")
        assert world.text == FIRST
        assert SECRET not in caught.value.message
        assert len(world.first.requests) == 1

    @pytest.mark.parametrize("broken", ["tool call", "two answers", "JSON"])
    async def test_an_answer_that_cannot_be_continued_ends_in_a_clear_error(
        self, begin: Begin, steps: Steps, broken: str
    ) -> None:
        call = {"index": 0, "id": "c1", "function": {"name": "search", "arguments": '{"q'}}
        begun = {"tool call": chunk({"tool_calls": [call]})}.get(broken, chunk({"content": "{"}))
        world = await begin(Reply((begun, *steps)))
        prompt = Prompt(
            (types_pb2.Message(role=types_pb2.ROLE_USER, content="?"),),
            sampling=types_pb2.Sampling(n=2 if broken == "two answers" else 1),
            output_format=types_pb2.OutputFormat(json_object=True) if broken == "JSON" else None,
        )
        with pytest.raises(errors.UpstreamFailed, match="in the middle of"):
            await world.ask_prompt(("first", "second"), prompt)
        assert world.second.requests == []


class TestAModelServerThatFails:
    FAILURES: ClassVar = [
        errors.Overloaded("full", retry_after_seconds=0.0),
        errors.Unavailable("draining"),
        errors.Internal("a mistake"),
        errors.NotFound("no such model"),
        errors.DeadlineExceeded("slow"),
        asyncio.Event(),
    ]

    @pytest.mark.parametrize("how", FAILURES, ids=lambda how: type(how).__name__)
    async def test_before_the_first_token_the_fallback_answers(self, begin: Begin, how: ModelServerStep) -> None:
        world = await begin(answer(ANSWER), first_token_seconds=0.25)
        world.fake.script = [how]
        assert await world.ask("local", "first") == ANSWER

    @pytest.mark.parametrize("how", FAILURES, ids=lambda how: type(how).__name__)
    async def test_after_the_first_token_the_fallback_goes_on(self, begin: Begin, how: ModelServerStep) -> None:
        world = await begin(answer(FIRST, REST))
        world.fake.script = ["Hợp đồng ", "có hiệu", how]
        assert await world.ask("local", "first") == ANSWER
        assert len(world.fake.requests) == 1


class TestTheChain:
    async def test_continues_the_text_of_all_models_before(self, begin: Begin) -> None:
        first = Reply((*text("Hợp đồng "), Step.RESET))
        second = Reply((*text("Hợp đồng ", "có hiệu"), Step.RESET))
        world = await begin(first, second)
        world.fake.script = [" lực từ", " ngày ký kết."]
        assert await world.ask("first", "second", "local") == ANSWER
        assert _continuation_asked(world, "second") == "Hợp đồng "
        assert _continuation_asked(world, "local") == FIRST
        assert [attempt.model for attempt in world.attempts] == ["first", "second", "local"]

    async def test_a_fallback_that_fails_while_it_still_repeats_loses_nothing(self, begin: Begin) -> None:
        first = Reply((*text(FIRST), Step.RESET))
        second = Reply((*text("Hợp đồng"), Step.RESET))
        world = await begin(first, second)
        world.fake.script = [REST]
        assert await world.ask("first", "second", "local") == ANSWER
        assert [found.model for found in world.events if isinstance(found, Started)] == ["first", "local"]

    async def test_a_model_that_continues_exactly_may_write_a_word_twice(self, begin: Begin) -> None:
        world = await begin(Reply((*text("Một trăm"), Step.RESET)))
        world.fake.script = ["trăm ", "Một trăm"]
        assert await world.ask("first", "local") == "Một trămtrăm Một trăm"

    async def test_log_probabilities_follow_the_text_that_is_new(self, begin: Begin) -> None:
        def written(*tokens: str) -> list[bytes]:
            return [
                chunk({"content": token}, logprobs={"content": [{"token": token, "logprob": -1.0}]}) for token in tokens
            ]

        first = Reply((*written("Hợp đồng", " có hiệu"), Step.RESET))
        second = Reply((*written("Hợp đồng", " có", " hiệu lực từ", " ngày", " ký kết."), chunk(finish="stop")))
        world = await begin(first, second)
        assert await world.ask("first", "second") == ANSWER
        deltas = [found for found in world.events if isinstance(found, Delta)]
        assert [delta.text for delta in deltas[2:]] == [" lực từ", " ngày", " ký kết."]
        assert [[entry.token for entry in delta.logprobs] for delta in deltas] == [
            ["Hợp đồng"], [" có hiệu"], [" hiệu lực từ"], [" ngày"], [" ký kết."],
        ]  # fmt: skip

    async def test_subtracts_used_tokens_from_max_tokens(self, begin: Begin) -> None:
        first = Reply((*text(FIRST), event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}),
                       Step.RESET))  # fmt: skip
        world = await begin(first)
        world.fake.script = [REST]
        await world.ask("first", "local", max_tokens=50)
        assert world.fake.requests[0].sampling.max_tokens == 46
        assert world.events[-1] == Finished(
            (types_pb2.FINISH_REASON_STOP,), Usage(prompt_tokens=19, completion_tokens=9), "local"
        )

    async def test_ends_the_answer_when_max_tokens_are_used_up(self, begin: Begin) -> None:
        first = Reply((*text(FIRST), event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}),
                       Step.RESET))  # fmt: skip
        world = await begin(first)
        assert await world.ask("first", "local", max_tokens=4) == FIRST
        finished = world.events[-1]
        assert isinstance(finished, Finished)
        assert finished.finish_reasons == (types_pb2.FINISH_REASON_LENGTH,)
        assert world.fake.requests == []

    async def test_a_refusal_of_the_continuation_is_no_error_of_the_client(self, begin: Begin) -> None:
        world = await begin(Reply((*text(FIRST), Step.RESET)), failure(400, param="messages"))
        world.fake.script = [REST]
        assert await world.ask("first", "second", "local") == ANSWER

    async def test_reports_the_last_error_when_no_model_answers(self, begin: Begin) -> None:
        world = await begin(failure(500), failure(401))
        world.fake.script = [errors.Overloaded("full", retry_after_seconds=7.0)]
        with pytest.raises(errors.UpstreamFailed, match="None of the 3 models") as caught:
            await world.ask("first", "second", "local")
        assert caught.value.retry_after_seconds == 7.0


def _continuation_asked(world: World, model: str) -> str:
    """The beginning of the answer as it was sent to a model."""
    if model == "local":
        conversation = world.fake.requests[0].conversation
        assert conversation.continue_final_message
        assert conversation.messages[-1].role == types_pb2.ROLE_ASSISTANT
        return conversation.messages[-1].content
    body = world.second.requests[0].body
    if body.get("continue_final_message"):
        assert body["add_generation_prompt"] is False
        assert body["messages"][-1]["role"] == "assistant"
        return str(body["messages"][-1]["content"])
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    return str(body["messages"][1]["content"])
