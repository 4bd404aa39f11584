"""Calls between services: they carry caller, deadline and trace, end at the deadline, and raise only FactoryError."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, identity, rpcs, testing
from genaifactory_common.channels import MAX_MESSAGE_BYTES, Duplex
from genaifactory_common.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FactoryError,
    NotFound,
    Unavailable,
    Unimplemented,
)
from tests.unit.common.conftest import Scripted, answer, released

Response = safety_pb2.CheckStreamResponse


def text(piece: str) -> safety_pb2.CheckStreamRequest:
    return safety_pb2.CheckStreamRequest(text=piece)


async def check(channel: grpc.aio.Channel, content: str = "x", *, seconds: float = 5) -> safety_pb2.CheckTextResponse:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    return await channels.unary(stub.CheckText, safety_pb2.CheckTextRequest(text=content), timeout_seconds=seconds)


def duplex(channel: grpc.aio.Channel, *, seconds: float = 5) -> Duplex:
    return Duplex(safety_pb2_grpc.SafetyServiceStub(channel).CheckStream, timeout_seconds=seconds)


async def test_a_call_carries_the_caller(scripted: Scripted) -> None:
    async def whoami(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        caller = identity.current()
        return answer(f"{caller.tenant}/{caller.principal}/{','.join(caller.groups)}")

    scripted.unary = whoami
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        assert (await check(channel)).text == "acme/alice/staff"


async def test_a_call_that_exceeds_its_timeout_ends_on_both_sides(scripted: Scripted) -> None:
    stopped = asyncio.Event()

    async def hang(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    scripted.unary = hang
    testing.act_as()
    async with testing.served(scripted.app()) as channel, asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded):
            await check(channel, seconds=0.1)
        await stopped.wait()


async def test_the_deadline_of_the_request_shortens_every_call_below_it(scripted: Scripted) -> None:
    remaining: list[float | None] = []

    async def look(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        remaining.append(channels.remaining_seconds())
        return answer("")

    scripted.unary = look
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        await check(channel, seconds=60)
        channels.set_deadline(2)
        await check(channel, seconds=60)
        channels.set_deadline(-1)
        with pytest.raises(DeadlineExceeded, match="deadline has passed"):
            await check(channel, seconds=60)
    first, second = remaining
    assert first is not None
    assert 50 < first <= 60.2  # gRPC rounds it up on the wire, to a tenth of a second
    assert second is not None
    assert 0 < second < 2.5


async def test_a_call_of_a_missing_service_is_unavailable() -> None:
    async with channels.connect("unix:/nonexistent/gf.sock") as channel:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await check(channel, seconds=1)


async def test_the_log_names_a_call_that_no_service_has_answered(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        other = monitor_pb2_grpc.MonitorServiceStub(channel)
        with pytest.raises(Unimplemented):
            await channels.unary(other.GetUsage, monitor_pb2.GetUsageRequest(), timeout_seconds=10)
    assert "/genaifactory.monitor.v1.MonitorService/GetUsage failed with UNIMPLEMENTED" in caplog.text


async def test_a_cancelled_call_is_cancelled_at_the_server(scripted: Scripted) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def hang(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    scripted.unary = hang
    testing.act_as()
    async with testing.served(scripted.app()) as channel, asyncio.timeout(5):
        task = asyncio.create_task(check(channel))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped.wait()


@pytest.mark.parametrize("error", [Unavailable("not yet"), Cancelled("stopping")])
async def test_an_idempotent_call_is_sent_again_when_the_service_was_unavailable(
    scripted: Scripted, error: FactoryError
) -> None:
    calls = 0

    async def third_time(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise error
        return answer("now")

    scripted.unary = third_time
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        assert (await check(channel)).text == "now"
    assert calls == 3


async def times_sent(method: str, folder: Path) -> int:
    """The number of times a call reaches a server that refuses the first one."""
    asked = 0

    async def away(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        if asked == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        yield b""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            assert handler_call_details.method == method
            return grpc.unary_stream_rpc_method_handler(away)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    # A socket of its own: gRPC throttles retries by the server's address.
    address = f"unix:{folder / method.rpartition('.')[2].replace('/', '.')}"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with channels.connect(address) as channel:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
            with contextlib.suppress(Unavailable):
                async for _ in channels.stream(call, b"", timeout_seconds=20):
                    pass
    finally:
        await server.stop(0)
    return asked


@pytest.mark.parametrize("method", ["orchestrator.v1.OrchestratorService/Answer", "gateway.v1.GatewayService/Chat"])
async def test_a_call_that_writes_an_answer_is_never_sent_again(socket_folder: Path, method: str) -> None:
    assert await times_sent(f"/genaifactory.{method}", socket_folder) == 1


async def test_the_channel_retries_exactly_the_methods_that_the_contracts_declare_idempotent(
    socket_folder: Path,
) -> None:
    sent = {method: await times_sent(method, socket_folder) for method in rpcs.methods()}
    assert {method for method, times in sent.items() if times == 2} == set(rpcs.idempotent())
    assert {method for method, times in sent.items() if times == 1} == set(rpcs.methods()) - set(rpcs.idempotent())
    # The orchestrator retries these itself.
    assert not {method for method in rpcs.idempotent() if method.endswith(("ModelService/Generate", "/Embed"))}


async def test_other_errors_are_not_retried(scripted: Scripted) -> None:
    calls = 0

    async def refuse(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        nonlocal calls
        calls += 1
        raise NotFound("no such policy", field="policy")

    scripted.unary = refuse
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        with pytest.raises(NotFound):
            await check(channel)
    assert calls == 1


async def test_a_message_of_the_longest_permitted_length_passes_and_a_longer_one_is_an_error(
    scripted: Scripted,
) -> None:
    testing.act_as()
    async with testing.served(scripted.app()) as channel:
        longest = "x" * (MAX_MESSAGE_BYTES - 100)
        assert (await check(channel, longest)).text == longest
        with pytest.raises(FactoryError):
            await check(channel, "x" * (MAX_MESSAGE_BYTES + 1))
        assert (await check(channel, "still")).text == "still"


async def test_a_duplex_call_sends_and_receives_in_turn(scripted: Scripted) -> None:
    testing.act_as()
    async with testing.served(scripted.app()) as channel, duplex(channel) as call:
        responses = aiter(call)
        for piece in ("xin", "chào"):
            await call.send(text(piece))
            assert (await anext(responses)).released == piece
        await call.done_sending()
        assert [response async for response in responses] == []


async def test_a_duplex_call_that_is_ended_early_is_cancelled_at_the_server(scripted: Scripted) -> None:
    stopped = asyncio.Event()

    async def listen(requests: AsyncIterator[safety_pb2.CheckStreamRequest]) -> AsyncIterator[Response]:
        try:
            async for _ in requests:
                yield released("heard")
        finally:
            stopped.set()

    scripted.duplex = listen
    testing.act_as()
    async with testing.served(scripted.app()) as channel, asyncio.timeout(5):
        async with duplex(channel) as call:
            await call.send(text("a"))
            assert (await anext(aiter(call))).released == "heard"
        await stopped.wait()


async def test_an_error_of_the_server_is_raised_for_reader_and_writer(scripted: Scripted) -> None:
    async def fail(requests: AsyncIterator[safety_pb2.CheckStreamRequest]) -> AsyncIterator[Response]:
        async for _ in requests:
            yield released("one")
            raise Conflict("enough", field="text")

    scripted.duplex = fail
    testing.act_as()
    async with testing.served(scripted.app()) as channel, duplex(channel) as call:
        await call.send(text("a"))
        with pytest.raises(Conflict, match="enough") as raised:
            [response async for response in call]
        assert raised.value.field == "text"
        with pytest.raises(Conflict, match="enough"):
            await call.send(text("b"))
        await call.done_sending()


async def test_sending_after_the_server_has_ended_the_call_is_an_error(scripted: Scripted) -> None:
    async def leave(requests: AsyncIterator[safety_pb2.CheckStreamRequest]) -> AsyncIterator[Response]:
        yield released("bye")

    scripted.duplex = leave
    testing.act_as()
    async with testing.served(scripted.app()) as channel, duplex(channel) as call:
        assert [response.released async for response in call] == ["bye"]
        with pytest.raises(Unavailable, match="ended the call"):
            await call.send(text("too late"))


async def test_a_duplex_call_has_a_deadline(scripted: Scripted) -> None:
    testing.act_as()
    async with testing.served(scripted.app()) as channel, duplex(channel, seconds=0.1) as call:
        with pytest.raises(DeadlineExceeded):
            [response async for response in call]
