"""What is done for every served call: transport, caller, permission, deadline, trace, errors and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import prometheus_client
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, identity, passes, runtime, settings, telemetry, testing, tokens
from genaifactory_common.errors import (
    DeadlineExceeded,
    FactoryError,
    Internal,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    from_rpc,
)
from genaifactory_common.telemetry import Telemetry
from tests.unit.common.conftest import CHECK_TEXT, Scripted, answer, released

REQUEST = safety_pb2.CheckTextRequest(text="x")


async def check(channel: grpc.aio.Channel, *, seconds: float = 5) -> safety_pb2.CheckTextResponse:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    return await channels.unary(stub.CheckText, REQUEST, timeout_seconds=seconds)


async def check_with(channel: grpc.aio.Channel, *metadata: tuple[str, str | bytes]) -> None:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    try:
        await stub.CheckText(REQUEST, timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None


async def samples(name: str, **labels: str) -> float:
    return await asyncio.to_thread(prometheus_client.REGISTRY.get_sample_value, name, labels) or 0.0


async def test_a_call_without_a_caller_is_refused(scripted: Scripted) -> None:
    async with testing.served(scripted.app()) as channel:
        with pytest.raises(Unauthenticated, match="only the gateway's calls do"):
            await check(channel)


@pytest.mark.parametrize("token", ["", "a.b", "x" * 4000, testing.signed(CHECK_TEXT, signer=tokens.Signer.generate())])
async def test_a_forged_caller_is_refused(token: str, scripted: Scripted) -> None:
    async with testing.served(scripted.app()) as channel:
        with pytest.raises(Unauthenticated, match=r"not signed by the gateway|a key that is not trusted"):
            await check_with(channel, (passes.CONTEXT, token))


async def test_a_caller_with_many_groups_is_accepted_with_all_of_them(scripted: Scripted) -> None:
    seen: list[tuple[str, ...]] = []

    async def look(_: Any) -> safety_pb2.CheckTextResponse:
        seen.append(identity.current().groups)
        return answer("")

    scripted.unary = look
    # A token of about 19 KB; gRPC's default bound is 8.
    groups = tuple(f"department-{number:030}" for number in range(300))
    testing.act_as(replace(testing.CALLER, groups=groups))
    async with testing.served(scripted.app()) as channel:
        for _ in range(20):  # above its own bound gRPC refuses at random
            await check(channel)
    assert seen == [groups] * 20


async def test_a_signed_caller_over_plain_tcp_is_refused(scripted: Scripted) -> None:
    testing.act_as()
    server = settings.Server(address="127.0.0.1:0", drain_seconds=0.1)
    async with runtime.running(scripted.app(), server) as address, channels.connect(address) as channel:
        with pytest.raises(Unauthenticated, match="mTLS or a unix socket"):
            await check(channel)


async def record_interactions(channel: grpc.aio.Channel) -> None:
    stub = monitor_pb2_grpc.MonitorServiceStub(channel)
    await channels.unary(stub.RecordInteractions, monitor_pb2.RecordInteractionsRequest(), timeout_seconds=5)


class Recorder(monitor_pb2_grpc.MonitorServiceServicer):
    """Records the callers of a method that services call in their own name."""

    def __init__(self) -> None:
        self.callers: list[list[tuple[str, str]]] = []

    async def RecordInteractions(
        self, request: monitor_pb2.RecordInteractionsRequest, context: Any
    ) -> monitor_pb2.RecordInteractionsResponse:
        with pytest.raises(Unauthenticated):
            identity.current()
        shown = context.invocation_metadata()
        self.callers.append([pair for pair in shown if pair[0].startswith(passes.CONTEXT)])
        return monitor_pb2.RecordInteractionsResponse()

    def app(self) -> runtime.ServiceApp:
        return replace(
            Scripted().app(),
            service_names=("genaifactory.monitor.v1.MonitorService",),
            register=lambda server: monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self, server),
        )


async def test_a_peer_method_needs_no_caller_and_has_none() -> None:
    recorder = Recorder()
    async with testing.served(recorder.app()) as channel:
        await record_interactions(channel)
        testing.act_as()
        await record_interactions(channel)
        identity.forget()
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        with pytest.raises(Unauthenticated):  # the service's other methods still require a caller
            await channels.unary(stub.GetUsage, monitor_pb2.GetUsageRequest(), timeout_seconds=5)
    assert recorder.callers == [[], []]


async def test_a_peer_method_is_refused_over_plain_tcp() -> None:
    server = settings.Server(address="127.0.0.1:0", drain_seconds=0.1)
    async with runtime.running(Recorder().app(), server) as address, channels.connect(address) as channel:
        with pytest.raises(Unauthenticated, match="mTLS or a unix socket"):
            await record_interactions(channel)


@pytest.mark.parametrize("verifier", [testing.VERIFIER, None], ids=["behind the gateway", "the gateway"])
@pytest.mark.parametrize("service", ["tests.unknown.v1.Unknown", "tests.bare.v1.Bare"])
async def test_a_method_whose_contract_does_not_declare_who_may_call_it_is_refused(
    service: str, verifier: tokens.Verifier | None, scripted: Scripted
) -> None:
    if service.startswith("tests.bare"):  # it has a contract, without the option
        bare = descriptor_pb2.FileDescriptorProto(name="tests/bare.proto", package="tests.bare.v1")
        bare.message_type.add(name="Nothing")
        declared = bare.service.add(name="Bare").method.add(name="Call")
        declared.input_type = declared.output_type = ".tests.bare.v1.Nothing"
        descriptor_pool.Default().Add(bare)
    served = False

    async def serve(request: bytes, context: Any) -> bytes:
        nonlocal served
        served = True
        return b""

    def register(server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Call": grpc.unary_unary_rpc_method_handler(serve, request_deserializer=bytes)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    # With a caller, `channels` would refuse it before the server does.
    async with testing.served(scripted.app(register=register, verifier=verifier)) as channel:
        with pytest.raises(PermissionDenied, match="does not declare who may call it"):
            await channels.unary(channel.unary_unary(f"/{service}/Call"), b"", timeout_seconds=5)
    assert not served


async def test_a_role_without_the_methods_permission_is_refused_before_the_method_runs(scripted: Scripted) -> None:
    async def refuse(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        raise AssertionError("it ran")

    scripted.unary = refuse
    testing.act_as(replace(testing.CALLER, role="reader", permissions=("models", "operate")))
    async with testing.served(scripted.app()) as channel:
        with pytest.raises(PermissionDenied, match="The role 'reader' has no permission 'chat'"):
            await check(channel)


async def test_a_call_does_not_inherit_the_caller_of_an_earlier_one(scripted: Scripted) -> None:
    seen: list[str] = []

    async def look(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        seen.append(identity.current().tenant)
        return answer("")

    scripted.unary = look
    async with testing.served(scripted.app()) as channel:
        for tenant in ("one", "two"):
            testing.act_as(replace(testing.CALLER, tenant=tenant))
            await check(channel)
        with pytest.raises(Unauthenticated):
            await check_with(channel)
    assert seen == ["one", "two"]


async def test_a_call_without_a_deadline_gets_the_default_one(scripted: Scripted, socket_folder: Path) -> None:
    async def hang(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        await asyncio.Event().wait()
        raise AssertionError

    scripted.unary = hang
    token = testing.signed(CHECK_TEXT)
    server = settings.Server(address=f"unix:{socket_folder}/s.sock", drain_seconds=0.1, default_timeout_seconds=0.05)
    async with runtime.running(scripted.app(), server) as address, channels.connect(address) as channel:
        stub = safety_pb2_grpc.SafetyServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CheckText(REQUEST, metadata=[(passes.CONTEXT, token)])
    assert type(from_rpc(raised.value)) is DeadlineExceeded


async def test_every_call_is_counted_by_its_status(scripted: Scripted) -> None:
    outcomes: list[BaseException | None] = [None, NotFound("no"), RuntimeError("bug")]

    async def play(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        if error := outcomes.pop(0):
            raise error
        return answer("")

    scripted.unary = play
    testing.act_as()
    async with testing.served(scripted.app(Telemetry("counted"))) as channel:
        await check(channel)
        for expected in (NotFound, Internal):
            with pytest.raises(expected):
                await check(channel)
    for code in ("OK", "NOT_FOUND", "INTERNAL"):
        labels = {"service": "counted", "method": CHECK_TEXT.lstrip("/"), "code": code}
        assert await samples("genaifactory_rpc_requests_total", **labels) == 1
    assert await samples("genaifactory_rpc_running", service="counted") == 0


async def test_a_stream_that_fails_midway_delivers_what_was_sent_and_then_the_error(scripted: Scripted) -> None:
    async def fail(
        requests: AsyncIterator[safety_pb2.CheckStreamRequest],
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        yield released("one")
        raise NotFound("no such policy", field="open.policy")

    scripted.duplex = fail
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        call = channels.Duplex(safety_pb2_grpc.SafetyServiceStub(channel).CheckStream, timeout_seconds=5)
        responses = aiter(call)
        assert (await anext(responses)).released == "one"
        with pytest.raises(NotFound) as raised:
            await anext(responses)
    assert raised.value.field == "open.policy"


async def test_a_handlers_resources_are_released_when_the_call_is_cancelled(scripted: Scripted) -> None:
    closed = asyncio.Event()

    async def hold(
        requests: AsyncIterator[safety_pb2.CheckStreamRequest],
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        try:
            yield released("one")
            await asyncio.Event().wait()
        finally:
            closed.set()

    scripted.duplex = hold
    testing.act_as()
    async with testing.served(scripted.app(Telemetry("held"))) as channel, asyncio.timeout(5):
        async with channels.Duplex(safety_pb2_grpc.SafetyServiceStub(channel).CheckStream, timeout_seconds=5) as call:
            assert (await anext(aiter(call))).released == "one"
        await closed.wait()


async def test_a_call_continues_the_trace_and_spans_hold_no_content(scripted: Scripted) -> None:
    exporters = InMemorySpanExporter(), InMemorySpanExporter()
    caller = await asyncio.to_thread(Telemetry, "caller", exporter=exporters[0])
    service = await asyncio.to_thread(Telemetry, "called", exporter=exporters[1])

    async def fail(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        raise RuntimeError("the user's own words")

    testing.act_as()
    async with testing.served(scripted.app(service)) as channel:
        with caller.span("question"):
            trace_id = telemetry.current_trace_id()
            await check(channel)
            scripted.unary = fail
            with pytest.raises(FactoryError):
                await check(channel)
    await asyncio.to_thread(caller.close)
    await asyncio.to_thread(service.close)

    (root,) = exporters[0].get_finished_spans()
    good, bad = exporters[1].get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in (good, bad, root) if span.context} == {trace_id}
    assert (good.name, good.kind.name) == (CHECK_TEXT.lstrip("/"), "SERVER")
    assert good.parent is not None
    assert root.context is not None
    assert good.parent.span_id == root.context.span_id
    assert good.attributes is not None
    assert good.attributes["rpc.method"] == "CheckText"
    assert good.attributes["rpc.grpc.status_code"] == 0
    assert bad.status.status_code is StatusCode.ERROR
    assert "own words" not in bad.to_json() + root.to_json()
