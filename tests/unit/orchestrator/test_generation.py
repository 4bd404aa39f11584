"""The model client: retries, budgets, circuits, deadlines, cancellation, accounting, and configuration changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.registry import Collector

from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, errors, specs, testing
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import openai_upstream
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_common.testing.openai_upstream import (
    Reply,
    Step,
    Upstream,
    Wait,
    answer,
    chunk,
    ending,
    event,
    failure,
    text,
)
from genaifactory_orchestrator.models import pricing
from genaifactory_orchestrator.models.attempts import ATTEMPTS
from genaifactory_orchestrator.models.backend import Delta, Prompt, Usage
from genaifactory_orchestrator.models.client import RETRIES_DENIED, Attempt, Event, Finished, ModelClient, Started
from genaifactory_orchestrator.models.targets import BREAKER_STATE

QUESTION = types_pb2.Message(role=types_pb2.ROLE_USER, content="Xin chào? " * 4)
BROKEN = Reply(early=(Step.RESET,))


@dataclass
class World:
    """A client of two scripted upstreams, `first` and `second`, and of the model server's `local`, on a fake clock."""

    client: ModelClient
    source: specs.Source
    first: Upstream
    second: Upstream
    fake: FakeModelServer
    now: list[float] = field(default_factory=lambda: [1000.0])
    waits: list[float] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    async def ask(self, *chain: str, prompt: Prompt | None = None, timeout_seconds: float = 60.0) -> list[Event]:
        stream = self.client.generate(
            chain, prompt or Prompt((QUESTION,)), timeout_seconds=timeout_seconds, attempts=self.attempts
        )
        async with aclosing(stream) as events:
            return [found async for found in events]

    async def refused(self, *chain: str, prompt: Prompt | None = None, timeout_seconds: float = 60.0) -> Exception:
        with pytest.raises(errors.FactoryError) as caught:
            await self.ask(*chain, prompt=prompt, timeout_seconds=timeout_seconds)
        return caught.value

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(attempt.model, attempt.error_reason) for attempt in self.attempts]


def factory(first: str, second: str, settings: str = "") -> specs.Factory:
    settings = settings or "retry: {attempts: 3, initial_backoff_seconds: 1, max_backoff_seconds: 4}"
    price = "price: {input_per_million_tokens: 1, output_per_million_tokens: 10}"
    return specs.parse(f"""
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat]}}]
policies: [{{name: default}}]
routes: [{{name: chat, task: chat, models: [first]}}]
models:
  - {{name: first, backend: {{type: openai, base_url: "{first}", model: m}}, {price}, {settings}}}
  - {{name: second, backend: {{type: openai, base_url: "{second}", model: n}}, {price}, {settings}}}
  - {{name: local, backend: {{type: modelserver, model: extractive}}, {settings}}}
  - {{name: vectors, kind: embedding, backend: {{type: openai, base_url: "{first}", model: e}}, {price}, {settings}}}
  - {{name: minilm, kind: embedding, backend: {{type: modelserver, model: minilm}}}}
""")


class Begin:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def __call__(
        self, *first: Reply, second: Sequence[Reply] = (), settings: str = "", telemetry: Telemetry | None = None
    ) -> World:
        testing.act_as()
        fake = FakeModelServer(["Xin", " chào"])
        channel = await self._stack.enter_async_context(testing.served(fake.app(testing.VERIFIER)))
        one = await self._stack.enter_async_context(openai_upstream.serve(first or [answer("Xin", " chào")]))
        two = await self._stack.enter_async_context(openai_upstream.serve(second or [answer("Chào", " bạn")]))
        source = specs.Source(factory(one.base_url, two.base_url, settings))
        now = [1000.0]
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            now[0] += seconds

        client = ModelClient(
            source,
            channel,
            telemetry or Telemetry("test"),
            clock=lambda: now[0],
            sleep=sleep,
            rng=random.Random(7),
            environ={},
        )
        await self._stack.enter_async_context(client)
        return World(client, source, one, two, fake, now, waits)


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with AsyncExitStack() as stack:
        yield Begin(stack)


@pytest.fixture
def traced() -> Iterator[tuple[Telemetry, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("orchestrator", exporter=exporter)
    yield telemetry, exporter
    telemetry.close()


def metric(collector: Collector, **labels: str) -> float:
    samples = (sample for family in collector.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.labels == labels and not sample.name.endswith("_created"))


class TestOneModel:
    async def test_streams_an_answer_with_its_usage(self, begin: Begin) -> None:
        world = await begin()
        assert await world.ask("first") == [
            Started("first"),
            Delta("Xin"),
            Delta(" chào"),
            Finished((types_pb2.FINISH_REASON_STOP,), Usage(10, 5), "first"),
        ]
        assert world.outcomes == [("first", "")]

    async def test_streams_the_model_servers_answer_with_the_same_events(self, begin: Begin) -> None:
        world = await begin()
        assert await world.ask("local") == [
            Started("local"),
            Delta("Xin"),
            Delta(" chào"),
            Finished((types_pb2.FINISH_REASON_STOP,), Usage(10, 5), "local"),
        ]

    async def test_sends_the_model_server_all_of_the_prompt(self, begin: Begin) -> None:
        world = await begin()
        prompt = Prompt(
            (QUESTION,),
            documents=(types_pb2.Passage(passage_id="p", text="Trời xanh."),),
            sampling=types_pb2.Sampling(temperature=0.0, max_tokens=7, top_k=3),
            tools=(types_pb2.Tool(name="search"),),
            tool_choice=types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_AUTO),
            output_format=types_pb2.OutputFormat(regex="a+"),
        )
        await world.ask("local", prompt=prompt)
        (request,) = world.fake.requests
        assert request.model == "extractive"
        assert tuple(request.conversation.messages) == prompt.messages
        assert not request.conversation.continue_final_message
        assert tuple(request.documents) == prompt.documents
        assert request.sampling == prompt.sampling
        assert tuple(request.tools) == prompt.tools
        assert request.tool_choice == prompt.tool_choice
        assert request.output_format == prompt.output_format

    async def test_several_choices_are_distinguished(self, begin: Begin) -> None:
        stream = (*text("a"), chunk({"content": "b"}, index=1), chunk(index=1, finish="length"), *ending())
        world = await begin(Reply(stream))
        events = await world.ask("first", prompt=Prompt((QUESTION,), sampling=types_pb2.Sampling(n=2)))
        assert events[1:] == [
            Delta("a"),
            Delta("b", 1),
            Finished((types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH), Usage(10, 5), "first"),
        ]

    async def test_an_empty_answer_is_an_answer(self, begin: Begin) -> None:
        world = await begin(answer())
        assert await world.ask("first") == [Finished((types_pb2.FINISH_REASON_STOP,), Usage(10, 5), "first")]

    async def test_missing_usage_is_estimated_and_marked(self, begin: Begin) -> None:
        world = await begin(answer("Xin chào bạn", usage=None))
        finished = (await world.ask("first"))[-1]
        assert isinstance(finished, Finished)
        assert finished.usage == Usage(15, 4, estimated=True)  # 44 and 14 bytes, and 4 for what frames a message

    async def test_counts_of_zero_are_treated_as_missing(self, begin: Begin) -> None:
        world = await begin(answer("Xin chào bạn", usage=(0, 0)))
        finished = (await world.ask("first"))[-1]
        assert isinstance(finished, Finished)
        assert finished.usage.estimated

    @pytest.mark.parametrize(
        "end",
        [(Step.RESET,), (Step.CLOSE,), (), (b"data: {nope\n\n",)],
        ids=["reset", "cut off", "no [DONE]", "rubbish"],
    )
    async def test_an_error_after_the_end_of_the_answer_is_ignored(
        self, begin: Begin, end: tuple[bytes | Step, ...]
    ) -> None:
        world = await begin(Reply((*text("Xin"), chunk(finish="stop"), *end)))
        events = await world.ask("first")
        assert events[:2] == [Started("first"), Delta("Xin")]
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.estimated

    async def test_an_unknown_model_is_not_found(self, begin: Begin) -> None:
        world = await begin()
        assert isinstance(await world.refused("nobody"), errors.NotFound)
        assert isinstance(await world.refused("minilm"), errors.NotFound)
        with pytest.raises(errors.NotFound):
            await world.client.embed("first", ["a"], timeout_seconds=1)


class TestRetries:
    @pytest.mark.parametrize("reply", [failure(500), failure(503), failure(408), failure(429), BROKEN])
    async def test_a_temporary_failure_is_retried(self, begin: Begin, reply: Reply) -> None:
        world = await begin(reply, reply, answer("Xin"))
        assert Delta("Xin") in await world.ask("first", "second")
        assert len(world.first.requests) == 3
        assert world.second.requests == []
        assert 0 <= world.waits[0] <= 1
        assert 0 <= world.waits[1] <= 2

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 307])
    async def test_a_permanent_failure_is_not_retried(self, begin: Begin, status: int) -> None:
        world = await begin(failure(status))
        await world.refused("first")
        assert len(world.first.requests) == 1

    async def test_a_clients_error_is_not_sent_to_another_model(self, begin: Begin) -> None:
        world = await begin(failure(400, param="temperature"))
        refused = await world.refused("first", "second")
        assert isinstance(refused, errors.InvalidArgument)
        assert refused.field == "sampling.temperature"
        assert world.second.requests == []

    async def test_waits_for_retry_after(self, begin: Begin) -> None:
        world = await begin(failure(429, retry_after="3"), answer("Xin"))
        await world.ask("first", "second")
        assert 3 <= world.waits[0] <= 4

    async def test_calls_the_next_model_at_once_when_retry_after_is_long(self, begin: Begin) -> None:
        world = await begin(failure(429, retry_after="5"))
        assert Delta("Chào") in await world.ask("first", "second")
        assert world.waits == []

    async def test_waits_for_the_last_model_within_the_deadline(self, begin: Begin) -> None:
        world = await begin(failure(429, retry_after="30"), answer("Xin"))
        assert Delta("Xin") in await world.ask("first")
        assert 30 <= world.waits[0] <= 31

    async def test_does_not_wait_beyond_the_deadline(self, begin: Begin) -> None:
        world = await begin(failure(429, retry_after="61"))
        refused = await world.refused("first")
        assert isinstance(refused, errors.Overloaded)
        assert refused.retry_after_seconds == 61
        assert world.waits == []

    async def test_a_prompt_too_long_for_one_model_may_fit_the_next(self, begin: Begin) -> None:
        world = await begin(failure(400, code="context_length_exceeded"))
        assert Delta("Chào") in await world.ask("first", "second")

    async def test_a_prompt_too_long_for_every_model_is_a_clients_error(self, begin: Begin) -> None:
        too_long = failure(400, code="context_length_exceeded")
        world = await begin(too_long, second=[too_long])
        assert isinstance(await world.refused("first", "second"), errors.ContextTooLong)

    async def test_an_output_format_that_no_model_supports_is_a_clients_error(self, begin: Begin) -> None:
        world = await begin()
        prompt = Prompt((QUESTION,), output_format=types_pb2.OutputFormat(regex="a+"))
        refused = await world.refused("first", "second", prompt=prompt)
        assert isinstance(refused, errors.InvalidArgument)
        assert refused.field == "output_format"
        assert Delta("Xin") in await world.ask("first", "local", prompt=prompt)

    async def test_when_every_model_is_busy_the_error_has_the_shortest_wait(self, begin: Begin) -> None:
        world = await begin(failure(429, retry_after="90"), second=[failure(429, retry_after="70")])
        refused = await world.refused("first", "second")
        assert isinstance(refused, errors.Overloaded)
        assert refused.retry_after_seconds == 70

    async def test_are_at_most_a_fifth_of_requests_while_all_fail(self, begin: Begin) -> None:
        breaker = "circuit_breaker: {failures: 100000}, retry: {attempts: 10, initial_backoff_seconds: 0.001}"
        world = await begin(BROKEN, settings=breaker)
        denied = metric(RETRIES_DENIED, model="first")
        for _ in range(200):
            await world.ask("first", "second")
        assert len(world.first.requests) - 200 == pytest.approx(10 + 0.2 * 200, abs=1)
        assert metric(RETRIES_DENIED, model="first") > denied + 100


class TestCircuit:
    SETTINGS = "retry: {attempts: 1}, circuit_breaker: {failures: 2, open_seconds: 30}"

    async def test_a_broken_model_is_not_called_until_a_later_trial(self, begin: Begin) -> None:
        world = await begin(BROKEN, BROKEN, BROKEN, answer("Xin"), settings=self.SETTINGS)
        for _ in range(4):
            assert Delta("Chào") in await world.ask("first", "second")
        assert len(world.first.requests) == 2
        assert world.outcomes[-2:] == [("first", "UNAVAILABLE"), ("second", "")]
        assert metric(BREAKER_STATE, model="first") == 2
        world.now[0] += 30
        await world.ask("first", "second")
        assert len(world.first.requests) == 3, "one trial, which failed"
        world.now[0] += 30
        assert Delta("Xin") in await world.ask("first", "second")
        assert metric(BREAKER_STATE, model="first") == 0

    async def test_the_error_of_an_open_circuit_has_the_time_until_the_trial(self, begin: Begin) -> None:
        world = await begin(BROKEN, settings=self.SETTINGS)
        for _ in range(2):
            await world.refused("first")
        world.now[0] += 10
        refused = await world.refused("first")
        assert isinstance(refused, errors.UpstreamFailed)
        assert refused.retry_after_seconds == pytest.approx(20)
        assert "is not called for now" in refused.message

    @pytest.mark.parametrize("reply", [failure(429), failure(400), failure(400, code="context_length_exceeded")])
    async def test_a_busy_model_or_a_refusal_does_not_open_the_circuit(self, begin: Begin, reply: Reply) -> None:
        world = await begin(reply, settings=self.SETTINGS)
        for _ in range(5):
            await world.refused("first")
        assert len(world.first.requests) == 5

    async def test_a_model_that_breaks_off_opens_the_circuit(self, begin: Begin) -> None:
        world = await begin(Reply((*text("Xin"), Step.RESET)), settings=self.SETTINGS)
        for _ in range(3):
            await world.ask("first", "second")
        assert len(world.first.requests) == 2

    async def test_a_request_that_is_cancelled_during_the_trial_does_not_block_the_next(self, begin: Begin) -> None:
        world = await begin(BROKEN, BROKEN, Reply((*text("Xin"), Step.HANG)), answer("Xin"), settings=self.SETTINGS)
        for _ in range(2):
            await world.refused("first")
        world.now[0] += 30
        stream = world.client.generate(["first"], Prompt((QUESTION,)), timeout_seconds=60)
        async with aclosing(stream) as events:
            assert await anext(events) == Started("first")
            assert isinstance(await world.refused("first"), errors.UpstreamFailed), "one trial at a time"
        assert Delta("Xin") in await world.ask("first")


class TestDeadlines:
    async def test_a_model_that_does_not_begin(self, begin: Begin) -> None:
        world = await begin(Reply((Step.HANG,)), settings="retry: {attempts: 1}, first_token_timeout_seconds: 0.1")
        refused = await world.refused("first")
        assert str(refused) == "The model 'first' did not begin within 0.1 s."
        assert world.outcomes == [("first", "DEADLINE_EXCEEDED")]
        await asyncio.wait_for(world.first.requests[0].left.wait(), 5)

    async def test_a_model_that_stops_sending(self, begin: Begin) -> None:
        world = await begin(Reply((*text("Xin"), Step.HANG)), settings="idle_timeout_seconds: 0.1")
        assert "sent nothing for 0.1 s" in str(await world.refused("first"))

    async def test_reasoning_counts_as_sending(self, begin: Begin) -> None:
        thoughts = asyncio.Event()
        world = await begin(
            Reply((chunk({"reasoning_content": "hm"}), Wait(thoughts), *text("Xin"), *ending())),
            settings="first_token_timeout_seconds: 0.3, idle_timeout_seconds: 60",
        )
        asyncio.get_running_loop().call_later(0.4, thoughts.set)
        assert Delta("Xin") in await world.ask("first")

    async def test_an_attempt_beyond_its_total_time(self, begin: Begin) -> None:
        world = await begin(
            Reply((*text("Xin"), Step.HANG)),
            settings="retry: {attempts: 1}, timeout_seconds: 0.3, first_token_timeout_seconds: 5",
        )
        assert "did not finish within 0.3 s" in str(await world.refused("first"))

    async def test_the_requests_own_deadline_ends_everything(self, begin: Begin) -> None:
        world = await begin(Reply((Step.HANG,)))
        refused = await world.refused("first", "second", timeout_seconds=0.3)
        assert isinstance(refused, errors.DeadlineExceeded)
        assert world.second.requests == []
        assert world.outcomes == [("first", "DEADLINE_EXCEEDED")]

    async def test_a_short_deadline_does_not_open_the_circuit(self, begin: Begin) -> None:
        world = await begin(Reply((Step.HANG,)), settings="circuit_breaker: {failures: 1}")
        for _ in range(2):
            assert isinstance(await world.refused("first", timeout_seconds=0.3), errors.DeadlineExceeded)
        assert len(world.first.requests) == 2

    async def test_the_callers_deadline_counts_too(self, begin: Begin) -> None:
        world = await begin(Reply((Step.HANG,)))
        channels.set_deadline(0.3)
        try:
            assert isinstance(await world.refused("first"), errors.DeadlineExceeded)
        finally:
            channels.set_deadline(3600)

    async def test_after_the_deadline_no_model_is_called(self, begin: Begin) -> None:
        world = await begin()
        assert isinstance(await world.refused("first", timeout_seconds=0), errors.DeadlineExceeded)
        assert world.first.requests == []

    async def test_an_answer_that_is_complete_does_not_wait_long_for_its_usage(
        self, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("genaifactory_orchestrator.models.client._USAGE_GRACE_SECONDS", 0.05)
        world = await begin(Reply((*text("Xin"), chunk(finish="stop"), Step.HANG)))
        finished = (await asyncio.wait_for(world.ask("first"), 5))[-1]
        assert isinstance(finished, Finished)
        assert finished.usage.estimated


class TestCancellation:
    async def test_closing_the_stream_disconnects_from_the_api_and_records_the_usage(self, begin: Begin) -> None:
        world = await begin(Reply((*text("Xin chào bạn"), Step.HANG)))
        stream = world.client.generate(["first"], Prompt((QUESTION,)), timeout_seconds=60, attempts=world.attempts)
        async with aclosing(stream) as events:
            assert [await anext(events), await anext(events)] == [Started("first"), Delta("Xin chào bạn")]
        await asyncio.wait_for(world.first.requests[0].left.wait(), 5)
        (attempt,) = world.attempts
        assert attempt.error_reason == "CANCELLED"
        assert attempt.usage == Usage(15, 4, estimated=True)
        assert attempt.cost.micros == Decimal(15 + 40)
        assert attempt.first_token_seconds is not None

    async def test_closing_the_stream_cancels_the_call_of_the_model_server(self, begin: Begin) -> None:
        world = await begin()
        world.fake.script = ["Xin", asyncio.Event()]
        stream = world.client.generate(["local"], Prompt((QUESTION,)), timeout_seconds=60)
        async with aclosing(stream) as events:
            assert [await anext(events), await anext(events)] == [Started("local"), Delta("Xin")]
        async with asyncio.timeout(5):
            while not world.fake.cancelled:  # noqa: ASYNC110  # the fake has a counter and no event
                await asyncio.sleep(0.001)

    async def test_cancelling_the_task_disconnects_also_before_the_first_token(self, begin: Begin) -> None:
        world = await begin(Reply(early=(Step.HANG,)))
        task = asyncio.create_task(world.ask("first", "second"))
        await world.first.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(world.first.requests[0].left.wait(), 5)
        assert world.outcomes == [("first", "CANCELLED")]
        assert world.second.requests == []

    async def test_a_cancelled_request_is_no_failure_of_the_model(self, begin: Begin) -> None:
        world = await begin(Reply((*text("a"), Step.HANG)), settings="circuit_breaker: {failures: 1}")
        for _ in range(3):
            stream = world.client.generate(["first"], Prompt((QUESTION,)), timeout_seconds=60)
            async with aclosing(stream) as events:
                await anext(events)
        assert len(world.first.requests) == 3


class TestAccounting:
    async def test_every_attempt_is_recorded_with_its_cost(self, begin: Begin) -> None:
        world = await begin(failure(500), Reply((*text("Xin chào bạn"), Step.RESET)))
        await world.ask("first", "second")
        assert world.outcomes == [("first", "UPSTREAM_FAILED"), ("first", "UPSTREAM_FAILED"), ("second", "")]
        assert [attempt.usage.completion_tokens for attempt in world.attempts] == [0, 4, 5]
        spent = pricing.total(attempt.cost for attempt in world.attempts)
        assert spent.rounded_micros == (15 + 40) + (10 + 50)

    async def test_counts_of_a_stream_that_breaks_off_are_used(self, begin: Begin) -> None:
        counted = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
        world = await begin(Reply((*text("Xin"), counted, Step.RESET)))
        await world.ask("first", "second")
        assert world.attempts[0].usage == Usage(9, 3)

    async def test_logs_hold_neither_urls_nor_text(self, begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        world = await begin(failure(500, message="bí mật"), answer("bí mật"))
        await world.ask("first")
        assert "model 'first' failed: UPSTREAM_FAILED" in caplog.text
        for secret in ("bí mật", "Xin chào", world.first.base_url):
            assert secret not in caplog.text

    async def test_a_clients_error_is_not_logged_as_a_warning(
        self, begin: Begin, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        world = await begin(failure(400))
        assert isinstance(await world.refused("first"), errors.InvalidArgument)
        (record,) = [record for record in caplog.records if record.getMessage().startswith("model 'first' failed")]
        assert record.levelname == "INFO"

    async def test_metrics_count_attempts_by_outcome(self, begin: Begin) -> None:
        def counts() -> list[float]:
            return [metric(ATTEMPTS, model="first", outcome=outcome) for outcome in ("ok", "rate_limited")]

        before = counts()
        world = await begin(failure(429, retry_after="0"), answer("Xin"))
        await world.ask("first")
        assert counts() == [before[0] + 1, before[1] + 1]

    async def test_each_attempt_has_a_span_without_text(
        self, begin: Begin, traced: tuple[Telemetry, InMemorySpanExporter]
    ) -> None:
        telemetry, exporter = traced
        world = await begin(Reply((*text("bí mật"), Step.RESET)), telemetry=telemetry)
        with telemetry.span("answer"):
            await world.ask("first", "local")
        await asyncio.to_thread(telemetry.close)
        failed, worked, parent = exporter.get_finished_spans()
        assert (failed.name, worked.name) == ("chat m", "chat extractive")
        assert failed.parent == worked.parent == parent.context
        assert failed.attributes is not None
        assert failed.attributes["error.type"] == "UPSTREAM_FAILED"
        assert worked.attributes is not None
        assert worked.attributes["gen_ai.operation.name"] == "chat"
        assert worked.attributes["gen_ai.request.model"] == "extractive"
        assert worked.attributes["gen_ai.usage.output_tokens"] == 5
        assert worked.attributes["gen_ai.response.finish_reasons"] == ("stop",)
        assert worked.attributes["genaifactory.attempt"] == 2
        for span in (failed, worked):
            assert "bí mật" not in span.to_json()
            assert "Xin chào" not in span.to_json()


class TestEmbeddings:
    async def test_come_from_an_api(self, begin: Begin) -> None:
        world = await begin(openai_upstream.embeddings([1.0, 2.0], [3.0, 4.0]))
        found = await world.client.embed("vectors", ["a", "b"], timeout_seconds=5, attempts=world.attempts)
        assert found.vectors == [[1.0, 2.0], [3.0, 4.0]]
        assert world.attempts[0].cost.micros == 7

    async def test_come_from_the_model_server(self, begin: Begin) -> None:
        world = await begin()
        found = await world.client.embed("minilm", ["a", "bcd"], timeout_seconds=5)
        assert [list(vector) for vector in found.vectors] == [[1.0, 1.0], [3.0, 1.0]]
        assert found.usage == Usage(2)

    async def test_are_retried(self, begin: Begin) -> None:
        world = await begin(failure(503), BROKEN, openai_upstream.embeddings([1.0]))
        await world.client.embed("vectors", ["a"], timeout_seconds=5, attempts=world.attempts)
        assert world.outcomes == [("vectors", "UPSTREAM_FAILED"), ("vectors", "UPSTREAM_FAILED"), ("vectors", "")]
        assert len(world.waits) == 2

    async def test_raise_the_failure_and_later_that_the_circuit_is_open(self, begin: Begin) -> None:
        world = await begin(failure(500), settings="retry: {attempts: 2}, circuit_breaker: {failures: 2}")
        with pytest.raises(errors.UpstreamFailed, match="'vectors' failed"):
            await world.client.embed("vectors", ["a"], timeout_seconds=5)
        with pytest.raises(errors.UpstreamFailed, match="is not called for now"):
            await world.client.embed("vectors", ["a"], timeout_seconds=5)
        assert len(world.first.requests) == 2

    async def test_keep_the_time_limit_of_one_attempt(self, begin: Begin) -> None:
        settings = "retry: {attempts: 2}, timeout_seconds: 0.1, first_token_timeout_seconds: 0.05"
        world = await begin(Reply(early=(Step.HANG,)), settings=settings)
        with pytest.raises(errors.UpstreamFailed, match=r"did not finish within 0.1 s"):
            await world.client.embed("vectors", ["a"], timeout_seconds=5)
        assert len(world.first.requests) == 2

    async def test_keep_the_deadline(self, begin: Begin) -> None:
        world = await begin(Reply(early=(Step.HANG,)))
        with pytest.raises(errors.DeadlineExceeded):
            await world.client.embed("vectors", ["a"], timeout_seconds=0.3, attempts=world.attempts)
        await asyncio.wait_for(world.first.requests[0].left.wait(), 5)
        assert world.outcomes == [("vectors", "DEADLINE_EXCEEDED")]


class TestConfigurationChanges:
    async def test_new_calls_use_the_new_backend_and_running_ones_finish_on_the_old(self, begin: Begin) -> None:
        more = asyncio.Event()
        world = await begin(Reply((*text("Xin"), Wait(more), chunk({"content": " chào"}), *ending())))
        stream = world.client.generate(["first"], Prompt((QUESTION,)), timeout_seconds=60)
        async with aclosing(stream) as events:
            assert await anext(events) == Started("first")
            world.source.replace(factory(world.second.base_url, world.first.base_url))
            assert Delta("Chào") in await world.ask("first")
            more.set()
            assert [found async for found in events][:2] == [Delta("Xin"), Delta(" chào")]

    async def test_a_model_that_did_not_change_keeps_its_circuit(self, begin: Begin) -> None:
        settings = "retry: {attempts: 1}, circuit_breaker: {failures: 1}"
        world = await begin(BROKEN, settings=settings)
        await world.refused("first")
        world.source.replace(factory(world.first.base_url, world.first.base_url, settings))
        await world.refused("first")
        assert len(world.first.requests) == 1

    async def test_a_model_that_is_gone_is_not_found(self, begin: Begin) -> None:
        world = await begin()
        await world.ask("first")
        document = world.source.current
        gone = document.model_copy(update={"models": tuple(m for m in document.models if m.name != "first")})
        world.source.replace(gone)
        assert isinstance(await world.refused("first"), errors.NotFound)
