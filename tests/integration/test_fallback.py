"""A model that fails in every way: the answer comes from the fallback, once and whole, or the error is clear."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors, specs, testing
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import modelserver, openai_upstream
from genaifactory_common.testing.openai_upstream import Reply, Step, Upstream, answer, chunk, event, failure, text
from genaifactory_orchestrator.backends import Delta, Prompt
from genaifactory_orchestrator.generation import Attempt, Event, Finished, ModelClient, Started

ANSWER = "Hợp đồng có hiệu lực từ ngày ký kết."
FIRST, REST = "Hợp đồng có hiệu", " lực từ ngày ký kết."
SECRET = "sk-not-to-be-seen"  # what upstreams say in their errors

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
    fake: modelserver.FakeModelServer
    waits: list[float]
    attempts: list[Attempt] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    async def ask(self, *chain: str, **sampling: int) -> str:
        prompt = Prompt(
            (types_pb2.Message(role=types_pb2.ROLE_USER, content="Khi nào hợp đồng có hiệu lực?"),),
            sampling=types_pb2.Sampling(**sampling),
        )
        stream = self.client.generate(chain, prompt, timeout_seconds=20, attempts=self.attempts)
        async with aclosing(stream) as events:
            async for found in events:
                self.events.append(found)
        return self.text

    @property
    def text(self) -> str:
        return "".join(found.text for found in self.events if isinstance(found, Delta))


def factory(first_url: str, second_url: str, dialect: str) -> specs.Factory:
    quick = "first_token_timeout_seconds: 0.25, idle_timeout_seconds: 0.25, retry: {attempts: 2}"
    return specs.parse(f"""
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat]}}]
policies: [{{name: default}}]
routes: [{{name: chat, task: chat, models: [first]}}]
models:
  - {{name: first, backend: {{type: openai, base_url: "{first_url}", model: m}}, {quick}}}
  - {{name: second, backend: {{type: openai, base_url: "{second_url}", model: n, dialect: {dialect}}}, {quick}}}
  - {{name: local, backend: {{type: modelserver, model: extractive}}, {quick}}}
""")


Begin = Callable[..., "asynccontextmanager[World]"]


@pytest.fixture
async def begin() -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def start(first: Reply, second: Reply, local: list[modelserver.Step], dialect: str) -> World:
            testing.act_as()
            fake = modelserver.FakeModelServer([local])
            channel = await stack.enter_async_context(testing.served(fake.app()))
            one = await stack.enter_async_context(openai_upstream.serve([first]))
            two = await stack.enter_async_context(openai_upstream.serve([second]))
            waits: list[float] = []

            async def sleep(seconds: float) -> None:
                waits.append(seconds)

            source = specs.Source(factory(one.base_url, two.base_url, dialect))
            client = ModelClient(source, channel, Telemetry("test"), sleep=sleep, rng=random.Random(1))
            await stack.enter_async_context(client)
            return World(client, one, two, fake, waits)

        yield start
