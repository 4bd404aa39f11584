"""Calls wait for a service that restarts, within a bound; a restart under load loses none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, runtime, settings, testing
from genaifactory_common.connection import Connection
from genaifactory_common.errors import Cancelled, DeadlineExceeded, Unavailable
from tests.unit.common.conftest import Scripted, answer, released

REQUEST = safety_pb2.CheckTextRequest(text="x")
PIECE = safety_pb2.CheckStreamRequest(text="x")


@asynccontextmanager
async def served(scripted: Scripted, port: int, **fields: Any) -> AsyncIterator[None]:
    """Serves at the port, for clients without certificates."""
    server = settings.Server(address=f"127.0.0.1:{port}", drain_seconds=2)
    async with runtime.running(scripted.app(verifier=None, **fields), server):
        yield


def patient(port: int, seconds: float) -> grpc.aio.Channel:
    return channels.connect(f"dns:///127.0.0.1:{port}", patience_seconds=seconds)


async def check(channel: grpc.aio.Channel, *, seconds: float = 5, patient: bool = True) -> str:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    return (await channels.unary(stub.CheckText, REQUEST, timeout_seconds=seconds, patient=patient)).text


def duplex(channel: grpc.aio.Channel, *, seconds: float = 5) -> channels.Duplex:
    return channels.Duplex(safety_pb2_grpc.SafetyServiceStub(channel).CheckStream, timeout_seconds=seconds)


async def speak(channel: grpc.aio.Channel, *, seconds: float = 5) -> list[str]:
    async with duplex(channel, seconds=seconds) as call:
        await call.send(PIECE)
        await call.done_sending()
        return [response.released async for response in call]


async def watch(channel: grpc.aio.Channel) -> int:
    """The first message of a server stream."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # the package's types lack its methods
    stream = channels.stream(stub.Watch, health_pb2.HealthCheckRequest(), timeout_seconds=5)
    async for message in stream:
        await stream.aclose()
        return int(message.status)
    raise AssertionError("no message")


async def test_every_kind_of_call_waits_for_a_service_to_start(scripted: Scripted, free_port: int) -> None:
    async with patient(free_port, 10) as channel, asyncio.TaskGroup() as group:
        calls = [group.create_task(each) for each in (check(channel), speak(channel), watch(channel))]
        await asyncio.sleep(2)
        assert not any(call.done() for call in calls)
        async with served(scripted, free_port):
            await asyncio.wait(calls, timeout=5)
    assert [call.result() for call in calls] == ["x", ["x"], health_pb2.HealthCheckResponse.SERVING]


async def test_the_timeout_counts_from_when_the_service_is_reached(scripted: Scripted, free_port: int) -> None:
    async def never(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with patient(free_port, 10) as channel:
        calls = asyncio.gather(check(channel, seconds=0.5), speak(channel, seconds=0.5))
        await asyncio.sleep(1)
        async with served(scripted, free_port):
            checked, spoken = await calls
            assert (checked, spoken) == ("x", ["x"])
            scripted.unary = never
            with pytest.raises(DeadlineExceeded):
                await check(channel, seconds=0.2)


async def test_calls_wait_for_a_service_that_is_not_ready(scripted: Scripted, free_port: int) -> None:
    ready = False
    async with served(scripted, free_port, ready=lambda: ready), patient(free_port, 10) as channel:
        call = asyncio.create_task(check(channel))
        await asyncio.sleep(0.5)
        assert not call.done()
        ready = True
        assert await call == "x"


@pytest.mark.parametrize("call", [check, speak, watch])
async def test_patience_ends(call: Callable[[grpc.aio.Channel], Awaitable[object]], free_port: int) -> None:
    async with patient(free_port, 0.5) as channel:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="cannot be reached") as raised:
            await call(channel)
        assert 0.4 < time.monotonic() - started < 2
        assert raised.value.retry_after_seconds is not None


async def test_no_call_waits_beyond_the_deadline_of_the_request(free_port: int) -> None:
    channels.set_deadline(0.3)
    async with patient(free_port, 10) as channel:
        assert isinstance(channel, Connection)
        connecting, started = channel.current(), time.monotonic()
        with pytest.raises(Unavailable):
            await check(channel)
        assert time.monotonic() - started < 2
        assert channel.current() is connecting  # a short deadline does not restart others' connecting
        with pytest.raises(DeadlineExceeded):
            await check(channel)


async def test_an_impatient_call_does_not_wait(free_port: int) -> None:
    async with patient(free_port, 10) as channel:
        started = time.monotonic()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await check(channel, seconds=2, patient=False)
        assert time.monotonic() - started < 4


async def test_a_service_that_was_away_for_longer_than_any_call_waited_is_reached_again(
    scripted: Scripted, free_port: int
) -> None:
    async with patient(free_port, 0.5) as channel:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await check(channel)
        async with served(scripted, free_port):
            assert await check(channel) == "x"


async def test_a_call_that_is_cancelled_while_it_waits_is_never_sent(scripted: Scripted, free_port: int) -> None:
    async with patient(free_port, 10) as channel:
        call, left = asyncio.create_task(check(channel)), duplex(channel)
        reading = asyncio.ensure_future(anext(aiter(left)))
        await asyncio.sleep(0.1)
        call.cancel()
        left.close()
        async with served(scripted, free_port):
            with pytest.raises(Cancelled):
                await reading
    assert call.cancelled()


async def test_closing_a_channel_ends_waiting_calls(free_port: int) -> None:
    async with asyncio.timeout(5):
        async with patient(free_port, 60) as channel:
            waiting = asyncio.create_task(check(channel))
            await asyncio.sleep(0.2)
        with pytest.raises(Unavailable):
            await waiting


@pytest.mark.slow
async def test_restarts_under_load_lose_no_call_and_repeat_none(scripted: Scripted, free_port: int) -> None:
    served_calls, answered, stop = 0, 0, False

    async def count(
        requests: AsyncIterator[safety_pb2.CheckStreamRequest],
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        nonlocal served_calls
        served_calls += 1
        async for request in requests:
            yield released(request.text)

    scripted.duplex = count

    async def ask(channel: grpc.aio.Channel) -> None:
        nonlocal answered
        while not stop:
            assert await speak(channel) == ["x"]  # a method that is never sent again
            answered += 1

    async with patient(free_port, 10) as channel, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(ask(channel))
        for _ in range(5):
            async with served(scripted, free_port):
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.2)
        async with served(scripted, free_port):
            await asyncio.sleep(0.5)
            stop = True
            while answered < served_calls:  # noqa: ASYNC110  # the last ones end
                await asyncio.sleep(0.01)
    assert answered == served_calls > 100


async def test_a_client_that_notices_a_stop_late_loses_no_call(scripted: Scripted, free_port: int) -> None:
    server = settings.Server(address=f"127.0.0.1:{free_port}", drain_seconds=10, quiet_seconds=0.5)
    running = runtime.running(scripted.app(verifier=None), server)
    # It does not watch health: its first notice is gRPC's own GOAWAY, after which calls are refused.
    async with grpc.aio.insecure_channel(f"127.0.0.1:{free_port}") as unaware:
        await running.__aenter__()
        assert await speak(unaware) == ["x"]
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        for _ in range(8):
            await asyncio.sleep(0.25)
            assert await speak(unaware) == ["x"]
        started = time.monotonic()
        await stopping
    assert 0.4 < time.monotonic() - started < 3  # after the quiet time, not the whole drain time


async def test_a_call_reaches_the_server_that_runs_now(scripted: Scripted, free_port: int) -> None:
    async with patient(free_port, 10) as channel:
        for name in ("first", "second"):

            async def named(_: safety_pb2.CheckTextRequest, name: str = name) -> safety_pb2.CheckTextResponse:
                return answer(name)

            scripted.unary = named
            async with served(scripted, free_port):
                assert await check(channel) == name


async def test_a_channel_without_patience_fails_at_once(free_port: int) -> None:
    testing.act_as()
    async with channels.connect(f"dns:///127.0.0.1:{free_port}") as channel:
        started = time.monotonic()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await check(channel)
        assert time.monotonic() - started < 3
