"""A service's life cycle: it starts, reports whether it is ready, and drains before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import channels, errors, passes, runtime, settings, testing
from genaifactory_common.errors import DeadlineExceeded, FactoryError, Overloaded, Unavailable
from genaifactory_common.testing import certificates
from tests.unit.common.conftest import CHECK_TEXT, SERVICE, Scripted, answer

REQUEST = safety_pb2.CheckTextRequest(text="x")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def check(channel: grpc.aio.Channel, *, seconds: float = 5) -> safety_pb2.CheckTextResponse:
    stub = safety_pb2_grpc.SafetyServiceStub(channel)
    return await channels.unary(stub.CheckText, REQUEST, timeout_seconds=seconds)


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # the package's types lack its methods
    response = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    return int(response.status)


async def test_health_follows_readiness(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_READINESS_INTERVAL_SECONDS", 0.01)
    ready = True
    async with testing.served(scripted.app(ready=lambda: ready)) as channel, asyncio.timeout(10):
        for state, expected in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
            ready = state
            while await health_of(channel, SERVICE) != expected:  # noqa: ASYNC110  # each look is a call
                await asyncio.sleep(0.005)
            assert await health_of(channel, "") == expected
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health_of(channel, "genaifactory.nobody.v1.NobodyService")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_service(scripted: Scripted) -> None:
    async def asked() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with testing.served(scripted.app()) as channel:
        make_stub: Any = reflection_pb2_grpc.ServerReflectionStub  # the package's types lack asyncio
        stub = make_stub(channel)
        async for response in stub.ServerReflectionInfo(asked(), timeout=5):
            names = {service.name for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_the_lifespan_is_open_while_the_service_serves(scripted: Scripted) -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        events.append("open")
        yield
        events.append("closed")

    async def note(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        events.append("call")
        return answer("")

    scripted.unary = note
    testing.act_as()
    async with testing.served(scripted.app(lifespan=lifespan)) as channel:
        await check(channel)
    assert events == ["open", "call", "closed"]


async def test_a_running_call_finishes_and_new_ones_are_refused_while_draining(
    scripted: Scripted, socket_folder: Path
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        begun.set()
        await go_on.wait()
        return answer("done")

    scripted.unary = slow
    testing.act_as()
    server = settings.Server(address=f"unix:{socket_folder}/s.sock", drain_seconds=5)
    running = runtime.running(scripted.app(), server)
    address = await running.__aenter__()
    async with channels.connect(address) as channel, channels.connect(address) as other:
        call = asyncio.create_task(check(channel))
        await begun.wait()
        draining = asyncio.create_task(running.__aexit__(None, None, None))
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await check(other, seconds=0.5)
        assert not draining.done()
        go_on.set()
        assert (await call).text == "done"
        await draining


async def test_a_call_longer_than_the_drain_is_ended(scripted: Scripted) -> None:
    begun = asyncio.Event()

    async def endless(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    scripted.unary = endless
    testing.act_as()
    async with asyncio.timeout(10):
        async with testing.served(scripted.app(), drain_seconds=0.1) as channel:
            # It is not retried: there is no server any more.
            call = asyncio.create_task(check(channel))
            await begun.wait()
        with pytest.raises((Unavailable, DeadlineExceeded, asyncio.CancelledError)):
            await call


async def test_a_call_that_outlasts_the_drain_gets_an_error_that_allows_a_retry(
    scripted: Scripted, socket_folder: Path
) -> None:
    begun = asyncio.Event()

    async def endless(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    scripted.unary = endless
    testing.act_as()
    server = settings.Server(address=f"unix:{socket_folder}/s.sock", drain_seconds=0.5)
    async with asyncio.timeout(10), contextlib.AsyncExitStack() as clients:
        async with runtime.running(scripted.app(), server) as address:
            once = grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])
            stub = safety_pb2_grpc.SafetyServiceStub(await clients.enter_async_context(once))
            call = stub.CheckText(REQUEST, metadata=((passes.CONTEXT, testing.signed(CHECK_TEXT)),))
            await begun.wait()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    error = errors.from_rpc(raised.value)
    assert isinstance(error, Unavailable)
    assert error.message == "The service stops; another replica can answer."
    assert error.retry_after_seconds == 1


async def test_health_is_served_while_a_service_with_serves_while_opening_opens(
    scripted: Scripted, socket_folder: Path
) -> None:
    opening, ready = asyncio.Event(), False

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        nonlocal ready
        await opening.wait()
        ready = True
        yield

    app = scripted.app(lifespan=lifespan, ready=lambda: ready, serves_while_opening=True)
    server = settings.Server(address=f"unix:{socket_folder}/s.sock", drain_seconds=0)
    running = runtime.running(app, server)
    async with asyncio.timeout(10), channels.connect(server.address) as channel:
        entering = asyncio.create_task(running.__aenter__())
        await channel.channel_ready()
        while await health_of(channel, runtime.LIVENESS) != SERVING:  # noqa: ASYNC110  # each look is a call
            await asyncio.sleep(0.005)
        assert await health_of(channel, "") == NOT_SERVING
        assert not entering.done()
        opening.set()
        await entering
        await running.__aexit__(None, None, None)


async def test_a_service_that_cannot_open_leaves_no_server_behind(scripted: Scripted, socket_folder: Path) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await open_store()
        yield

    async def open_store() -> None:
        raise Unavailable("no store")

    address = f"unix:{socket_folder}/s.sock"
    for early in (False, True):
        with pytest.raises(Unavailable, match="no store"):
            async with runtime.running(
                scripted.app(lifespan=lifespan, serves_while_opening=early), settings.Server(address=address)
            ):
                raise AssertionError("must not serve")
    async with runtime.running(scripted.app(), settings.Server(address=address, drain_seconds=0)):
        pass  # the address is free again


async def test_liveness_does_not_follow_readiness(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_READINESS_INTERVAL_SECONDS", 0.01)
    alive = True
    async with testing.served(scripted.app(ready=lambda: False, alive=lambda: alive)) as channel, asyncio.timeout(10):
        for state, expected in ((True, SERVING), (False, NOT_SERVING)):
            alive = state
            while await health_of(channel, runtime.LIVENESS) != expected:  # noqa: ASYNC110  # each look is a call
                await asyncio.sleep(0.005)
            assert await health_of(channel, "") == NOT_SERVING


@pytest.mark.allow_blocking  # a service reads its three small files on its event loop
async def test_without_tls_probes_reach_health_and_nothing_else(
    scripted: Scripted, tmp_path: Path, free_port: int
) -> None:
    own = certificates.write(tmp_path, certificates.new_authority())
    server = settings.Server(
        address="localhost:0",
        health_address=f"127.0.0.1:{free_port}",
        drain_seconds=0,
        tls=own,
        callers=(certificates.GATEWAY,),
    )
    testing.act_as()
    async with runtime.running(scripted.app(), server), channels.connect(f"127.0.0.1:{free_port}") as channel:
        assert await health_of(channel, "") == SERVING
        with pytest.raises(FactoryError):
            await check(channel)


async def test_a_service_that_still_opens_is_not_ready(scripted: Scripted, free_port: int) -> None:
    opens = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await opens.wait()
        yield

    app = dataclasses.replace(scripted.app(), lifespan=lifespan)
    health_address = f"127.0.0.1:{free_port}"
    server = settings.Server(address="127.0.0.1:0", health_address=health_address, drain_seconds=0)

    async def serve() -> None:
        async with runtime.running(app, server):
            assert await health_of(channel, "") == SERVING

    async with channels.connect(health_address) as channel, asyncio.timeout(10):
        serving = asyncio.create_task(serve())
        while True:
            with contextlib.suppress(FactoryError):
                assert await health_of(channel, runtime.LIVENESS) == SERVING
                break
        assert await health_of(channel, "") == NOT_SERVING
        opens.set()
        await serving


async def test_more_calls_than_allowed_are_refused_as_overloaded(scripted: Scripted, socket_folder: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        begun.set()
        await go_on.wait()
        return answer("done")

    scripted.unary = slow
    testing.act_as()
    server = settings.Server(address=f"unix:{socket_folder}/s.sock", drain_seconds=1, max_concurrent_calls=1)
    async with runtime.running(scripted.app(), server) as address, channels.connect(address) as channel:
        first = asyncio.create_task(check(channel))
        await begun.wait()
        with pytest.raises(Overloaded):
            await check(channel)
        go_on.set()
        assert (await first).text == "done"


async def test_an_address_in_use_is_an_error_at_once(scripted: Scripted) -> None:
    async with runtime.running(scripted.app(), settings.Server(address="127.0.0.1:0", drain_seconds=0)) as address:
        assert not address.endswith(":0")
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            async with runtime.running(scripted.app(), settings.Server(address=address)):
                pass


PROCESS = """
import asyncio, sys
from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import runtime, settings
from genaifactory_common.runtime import ServiceApp

class Slow(safety_pb2_grpc.SafetyServiceServicer):
    async def CheckText(self, request, context):
        print("begun", flush=True)
        await asyncio.sleep(0.5)
        return safety_pb2.CheckTextResponse(text="done")

class lifespan:
    async def __aenter__(self): print("open", flush=True)
    async def __aexit__(self, *_): print("closed", flush=True)

def create(telemetry):
    return ServiceApp(
        name="slow", telemetry=telemetry, service_names=("genaifactory.safety.v1.SafetyService",),
        register=lambda server: safety_pb2_grpc.add_SafetyServiceServicer_to_server(Slow(), server),
        lifespan=lifespan,
    )

common = settings.Common(server=settings.Server(address=sys.argv[1], drain_seconds=10))
runtime.main("slow", lambda: common, lambda _, telemetry: create(telemetry))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_that_gets_a_signal_answers_the_calls_that_it_accepted(
    number: signal.Signals, socket_folder: Path
) -> None:
    address = f"unix:{socket_folder}/s.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, address, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60), channels.connect(address) as channel:
            assert await process.stdout.readline() == b"open\n"
            await channel.channel_ready()
            call = asyncio.create_task(check(channel, seconds=30))
            assert await process.stdout.readline() == b"begun\n"
            process.send_signal(number)
            assert (await call).text == "done"
            rest, log = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert (process.returncode, rest) == (0, b"closed\n")
    assert b"slow drains for up to 10 s" in log


def test_unreadable_secrets_end_the_process_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.SECRETS_DIR, "/nonexistent")
    with pytest.raises(SystemExit, match=r"^safety: GENAIFACTORY_SECRETS_DIR names no folder: No such file"):
        runtime.main("safety", settings.Common, lambda _, __: pytest.fail("must not start"))


def test_grpc_accepts_the_experiments_that_the_platform_disables_without_a_message() -> None:
    # A release of grpc without them would print a message on every start: then the setting has to go.
    code = (
        "import genaifactory_common, asyncio, os, grpc.aio\n"
        "async def main():\n"
        "    server = grpc.aio.server()\n"
        "    server.add_insecure_port('127.0.0.1:0')\n"
        "    await server.start()\n"
        "    await server.stop(0)\n"
        "asyncio.run(main())\n"
        "print(os.environ['GRPC_EXPERIMENTS'])\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, timeout=60, check=True)
    assert b"event_engine_client" in done.stdout
    assert b"experiment" not in done.stderr
