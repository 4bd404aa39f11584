"""The served model server: streams, cancellation, deadlines, bounds, drain, metrics and spans."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Counter, Gauge, Histogram

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, errors, identity, passes, runtime, settings, testing
from genaifactory_common.channels import stream, unary
from genaifactory_common.engine_specs import Extractive, Fake
from genaifactory_common.errors import (
    DeadlineExceeded,
    FactoryError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver import metrics
from genaifactory_modelserver.engines.fake import Failure, FakeEngine, Rule
from tests.unit.modelserver.conftest import MakeApp, RequestFor, Serve

GENERATE = "/genaifactory.modelserver.v1.ModelService/Generate"


def metric(collector: Counter | Gauge | Histogram, suffix: str = "", **labels: str) -> float:
    """The value of a metric; not out of the whole registry, which reads files of /proc."""
    samples = (sample for family in collector.collect() for sample in family.samples)
    return next((s.value for s in samples if s.labels == labels and s.name.endswith(suffix)), 0.0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other tasks bring about."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for is inside the server
            await asyncio.sleep(0.001)


async def collected(
    stub: modelserver_pb2_grpc.ModelServiceAsyncStub, request: modelserver_pb2.GenerateRequest
) -> list[modelserver_pb2.GenerateResponse]:
    return [message async for message in stream(stub.Generate, request, timeout_seconds=10)]


@pytest.fixture
def socket() -> Iterator[str]:
    """An address; not below tmp_path, since a unix socket's path is bounded to about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield f"unix:{Path(folder) / 's.sock'}"


async def test_a_question_is_answered_over_grpc_with_usage_in_the_last_message(
    serve: Serve, request_for: RequestFor
) -> None:
    passage = types_pb2.Passage(text="Giá vé là 20.000 đồng một lượt.", title="Giá vé", language="vi")
    async with serve(Extractive()) as stub:
        messages = await collected(stub, request_for("Giá vé bao nhiêu?", "extractive", documents=[passage]))
    assert "".join(message.delta for message in messages) == "Giá vé là 20.000 đồng một lượt. [1]"
    assert messages[-1].finish_reason == types_pb2.FINISH_REASON_STOP
    assert messages[-1].usage.completion_tokens == 8
    assert not any(message.HasField("usage") for message in messages[:-1])


async def test_several_engines_are_served_at_once_and_listed_by_name(serve: Serve, request_for: RequestFor) -> None:
    async with serve(Fake(models=("zeta", "alpha")), Extractive(context_tokens=1000)) as stub:
        listed = await unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=5)
        assert [(m.name, m.engine, m.capability) for m in listed.models] == [
            ("alpha", "fake", modelserver_pb2.CAPABILITY_GENERATE),
            ("extractive", "extractive", modelserver_pb2.CAPABILITY_GENERATE),
            ("zeta", "fake", modelserver_pb2.CAPABILITY_GENERATE),
        ]
        assert listed.models[1].context_tokens == 1000
        messages = await collected(stub, request_for("xin chào", "zeta"))
    assert "".join(message.delta for message in messages) == "echo: xin chào"


async def test_tool_calls_logprobs_and_choices_come_through(serve: Serve, request_for: RequestFor) -> None:
    engine = FakeEngine(
        rules=[
            Rule.model_validate(
                {"pieces": ["a", "b"], "tool_calls": [{"id": "c", "name": "f", "arguments": ["{", "}"]}]}
            )
        ]
    )
    sampling = types_pb2.Sampling(n=2, logprobs=True, top_logprobs=2)
    async with serve(fake=engine) as stub:
        messages = await collected(stub, request_for(sampling=sampling))
    assert [(m.choice, m.delta) for m in messages[:4]] == [(0, "a"), (1, "a"), (0, "b"), (1, "b")]
    assert messages[0].logprobs[0].token == "a"
    assert len(messages[0].logprobs[0].top) == 2
    arguments = [call.arguments_json for m in messages if m.choice == 1 for call in m.tool_calls]
    assert arguments == ["{", "}"]
    assert [m.finish_reason for m in messages[-2:]] == [types_pb2.FINISH_REASON_TOOL_CALLS] * 2
    assert messages[-1].usage.completion_tokens == 4


async def test_a_client_that_goes_away_stops_the_generation_in_the_engine(
    serve: Serve, request_for: RequestFor
) -> None:
    engine = FakeEngine(rules=[Rule(pieces=("word ",), repeat=1_000_000)])
    before = metric(metrics.CANCELLED, "_total", model="fake", cause="client")
    async with serve(fake=engine) as stub:
        for _ in range(50):
            async for _ in stream(stub.Generate, request_for(), timeout_seconds=30):
                break
        await until(lambda: engine.cancelled == 50)
        assert engine.running == 0
        await until(lambda: metric(metrics.CANCELLED, "_total", model="fake", cause="client") == before + 50)
        await until(lambda: metric(metrics.RUNNING, engine="fake") == 0)


async def test_a_client_that_goes_away_while_the_engine_is_silent_stops_it_too(
    serve: Serve, request_for: RequestFor
) -> None:
    engine = FakeEngine(rules=[Rule(pieces=(), hang=True)])
    async with serve(fake=engine) as stub:
        call = stub.Generate(
            request_for(),
            metadata=[(passes.CONTEXT, testing.signed(GENERATE))],
        )
        await until(lambda: engine.running == 1)
        call.cancel()
        await until(lambda: engine.running == 0)
    assert engine.cancelled == 1


async def test_a_client_that_does_not_read_holds_the_engine_back(serve: Serve, request_for: RequestFor) -> None:
    engine = FakeEngine(rules=[Rule(pieces=("x" * 100_000,), repeat=1_000)])
    produced = metric(metrics.COMPLETION_TOKENS, "_total", model="fake")
    async with serve(fake=engine) as stub:
        call = stub.Generate(
            request_for(),
            metadata=[(passes.CONTEXT, testing.signed(GENERATE))],
        )
        await call.read()
        await asyncio.sleep(0.2)
        assert engine.running == 1  # 100 MB are not piled up in memory
        call.cancel()
        await until(lambda: engine.running == 0)
    assert metric(metrics.COMPLETION_TOKENS, "_total", model="fake") == produced


async def test_a_deadline_stops_the_generation_and_says_so(serve: Serve, request_for: RequestFor) -> None:
    engine = FakeEngine(rules=[Rule(hang=True)])
    before = metric(metrics.CANCELLED, "_total", model="fake", cause="deadline")
    async with serve(fake=engine) as stub:
        with pytest.raises(DeadlineExceeded):
            _ = [m async for m in stream(stub.Generate, request_for(), timeout_seconds=0.1)]
        await until(lambda: engine.running == 0)
        await until(lambda: metric(metrics.CANCELLED, "_total", model="fake", cause="deadline") == before + 1)


async def test_more_requests_than_run_and_wait_are_refused_with_a_time_to_retry(
    serve: Serve, request_for: RequestFor
) -> None:
    engine = FakeEngine(rules=[Rule(hang=True)])
    async with serve(Fake(max_running=2, max_queued=1), fake=engine) as stub, asyncio.TaskGroup() as group:
        held = [group.create_task(collected(stub, request_for())) for _ in range(3)]
        await until(lambda: metric(metrics.QUEUED, engine="fake") == 1)
        assert metric(metrics.RUNNING, engine="fake") == 2
        with pytest.raises(Overloaded) as raised:
            await collected(stub, request_for())
        assert raised.value.retry_after_seconds is not None
        assert raised.value.retry_after_seconds >= 1
        assert len(engine.seen) == 4  # the engine checked the last one, too, before it was refused
        for task in held:
            task.cancel()
    assert engine.running == 0


async def test_a_wrong_request_is_refused_at_once_while_the_engine_is_full(
    serve: Serve, request_for: RequestFor
) -> None:
    bound = Extractive(max_running=1, max_queued=0)
    async with serve(bound) as stub:
        with pytest.raises(InvalidArgument) as raised:
            await collected(stub, request_for(model="extractive", sampling=types_pb2.Sampling(n=2)))
    assert raised.value.field == "sampling.n"


@pytest.mark.parametrize("reason", ["OVERLOADED", "UNAVAILABLE", "CONTEXT_TOO_LONG", "INTERNAL"])
async def test_an_error_after_the_first_pieces_keeps_its_reason(
    serve: Serve, request_for: RequestFor, reason: str
) -> None:
    rule = Rule(pieces=("one ", "two "), error=Failure.model_validate({"reason": reason, "retry_after_seconds": 3}))
    async with serve(fake=FakeEngine(rules=[rule])) as stub:
        messages = stream(stub.Generate, request_for(), timeout_seconds=5)
        got = [(await anext(messages)).delta, (await anext(messages)).delta]
        with pytest.raises(FactoryError) as raised:
            await anext(messages)
    assert got == ["one ", "two "]
    assert raised.value.reason == reason
    assert raised.value.retry_after_seconds == 3


@asynccontextmanager
async def running(app: ServiceApp, address: str, *, drain_seconds: float) -> AsyncIterator[None]:
    """Runs the service alone; the client's channel outlives it."""
    async with runtime.running(app, settings.Server(address=address, drain_seconds=drain_seconds)):
        yield


async def test_a_draining_server_ends_what_runs_and_takes_nothing_new(
    make_app: MakeApp, request_for: RequestFor, socket: str
) -> None:
    engine = FakeEngine(rules=[Rule(pieces=("a ", "b ", "c "), delay_seconds=0.1)])
    async with channels.connect(socket) as channel:
        stub = modelserver_pb2_grpc.ModelServiceStub(channel)
        async with running(make_app(fake=engine), socket, drain_seconds=5):
            ends = asyncio.create_task(collected(stub, request_for()))
            await until(lambda: engine.running == 1)
        assert "".join(message.delta for message in await ends) == "a b c "
        assert engine.cancelled == 0
        assert engine.closed
        with pytest.raises(Unavailable):
            await collected(stub, request_for())


async def test_a_server_that_cannot_wait_longer_stops_what_runs(
    make_app: MakeApp, request_for: RequestFor, socket: str
) -> None:
    engine = FakeEngine(rules=[Rule(hang=True)])
    async with channels.connect(socket) as channel:
        stub = modelserver_pb2_grpc.ModelServiceStub(channel)
        async with running(make_app(fake=engine), socket, drain_seconds=0.05):
            ends = asyncio.create_task(collected(stub, request_for()))
            await until(lambda: engine.running == 1)
        with pytest.raises(FactoryError):
            await ends
    assert (engine.running, engine.cancelled) == (0, 1)


async def test_an_engine_that_is_not_ready_answers_unavailable(serve: Serve, request_for: RequestFor) -> None:
    engine = FakeEngine()
    async with serve(fake=engine) as stub:
        engine.closed = True
        with pytest.raises(Unavailable) as raised:
            await collected(stub, request_for())
    assert raised.value.retry_after_seconds == 1


async def test_adapters_are_refused_in_words_to_those_who_may_ask(serve: Serve) -> None:
    load = modelserver_pb2.LoadAdapterRequest(name="a", source_uri="/a")
    unload = modelserver_pb2.UnloadAdapterRequest(name="a")
    async with serve() as stub:
        with pytest.raises(PermissionDenied):
            await unary(stub.LoadAdapter, load, timeout_seconds=5)
        testing.act_as(identity.Caller("acme", "ops", "ops", "operator", permissions=("operate",)))
        with pytest.raises(Unimplemented, match="extractive, fake"):
            await unary(stub.LoadAdapter, load, timeout_seconds=5)
        with pytest.raises(Unimplemented, match="extractive, fake"):
            await unary(stub.UnloadAdapter, unload, timeout_seconds=5)


async def test_a_call_without_a_signed_caller_is_refused(serve: Serve, request_for: RequestFor) -> None:
    async with serve() as stub:
        call = stub.Generate(request_for())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [message async for message in call]
    assert isinstance(errors.from_rpc(raised.value), Unauthenticated)


async def test_tokens_first_token_times_and_finish_reasons_are_counted(serve: Serve, request_for: RequestFor) -> None:
    counted: list[tuple[Counter | Histogram, str]] = [
        (metrics.PROMPT_TOKENS, "_total"),
        (metrics.COMPLETION_TOKENS, "_total"),
        (metrics.TIME_TO_FIRST_TOKEN, "_count"),
    ]
    before = [metric(*each, model="fake") for each in counted]
    lengths = metric(metrics.FINISHED, "_total", model="fake", finish_reason="length")
    async with serve(fake=FakeEngine()) as stub:
        await collected(stub, request_for("one two three", sampling=types_pb2.Sampling(max_tokens=2)))
    assert [metric(*each, model="fake") - b for each, b in zip(counted, before, strict=True)] == [3, 2, 1]
    assert metric(metrics.FINISHED, "_total", model="fake", finish_reason="length") == lengths + 1


@pytest.fixture
def exported() -> tuple[Telemetry, InMemorySpanExporter]:
    """Telemetry and where its spans go."""
    exporter = InMemorySpanExporter()
    return Telemetry("modelserver", exporter=exporter), exporter


async def test_a_generation_has_a_span_of_the_genai_conventions_without_any_text(
    serve: Serve, request_for: RequestFor, exported: tuple[Telemetry, InMemorySpanExporter]
) -> None:
    telemetry, exporter = exported
    async with serve(fake=FakeEngine(), telemetry=telemetry) as stub:
        await collected(stub, request_for("my secret", sampling=types_pb2.Sampling(temperature=0.5, max_tokens=9)))
    await asyncio.to_thread(telemetry.close)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    span = spans["chat fake"]
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "genaifactory.fake"
    assert attributes["gen_ai.request.model"] == "fake"
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.max_tokens"] == 9
    assert attributes["gen_ai.usage.input_tokens"] == 2
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    served = spans["genaifactory.modelserver.v1.ModelService/Generate"]
    assert span.parent is not None
    assert served.context is not None
    assert span.parent.span_id == served.context.span_id
    assert "secret" not in span.to_json()


def process_environment(folder: Path, socket: str) -> dict[str, str]:
    """Of a model server with a scripted engine, as a process of its own."""
    script = {"rules": [{"contains": "boom", "pieces": ["one "], "error": {"reason": "OVERLOADED"}}]}
    (folder / "script.json").write_text(json.dumps(script))
    (folder / "factory.yaml").write_text(
        "tenants: [{name: acme}]\nroles: [{name: r, permissions: [chat]}]\npolicies: [{name: default}]\n"
        "models: [{name: m, backend: {type: modelserver, model: fake}}]\nroutes: [{name: c, task: chat, models: [m]}]\n"
        f"engines: [{{type: fake, script_file: {folder}/script.json}}]\n"
    )
    return {
        **os.environ,
        "GENAIFACTORY_SERVER__ADDRESS": socket,
        "GENAIFACTORY_FACTORY_FILE": str(folder / "factory.yaml"),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": public_key(),
    }


@pytest.mark.allow_blocking
async def test_it_runs_as_a_process_with_a_scripted_engine_and_drains_on_sigterm(
    tmp_path: Path, request_for: RequestFor, socket: str
) -> None:
    environment = process_environment(tmp_path, socket)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "genaifactory_modelserver", env=environment)
    testing.act_as()
    try:
        async with channels.connect(socket) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            stub = modelserver_pb2_grpc.ModelServiceStub(channel)
            echoed = await collected(stub, request_for("hello"))
            assert "".join(message.delta for message in echoed) == "echo: hello"
            with pytest.raises(Overloaded):
                await collected(stub, request_for("boom"))
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.allow_blocking
async def test_it_ends_with_the_process_that_started_it_even_if_that_is_killed(tmp_path: Path, socket: str) -> None:
    start = (
        "import os, subprocess, sys; os.environ['GENAIFACTORY_SERVER__PARENT_PID'] = str(os.getpid()); "
        "child = subprocess.Popen([sys.executable, '-m', 'genaifactory_modelserver']); "
        "print(child.pid, flush=True); child.wait()"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", start, env=process_environment(tmp_path, socket), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    try:
        async with channels.connect(socket) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
        await asyncio.sleep(2.5)  # it looks every second, and stays while its parent does
        assert runs(child)
        parent.kill()
        async with asyncio.timeout(30):
            while runs(child):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        await parent.wait()


def runs(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def public_key() -> str:
    return base64.b64encode(testing.SIGNER.public_key).decode()
