"""Retries at the model server: each recorded attempt is one call of a server, and a drain loses no request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest

from genaifactory.modelserver.v1 import modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, errors, specs, testing
from genaifactory_common.errors import Cancelled, FactoryError, Reason, Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_orchestrator.models.backend import Delta, Prompt
from genaifactory_orchestrator.models.client import Attempt, ModelClient

PROMPT = Prompt((types_pb2.Message(role=types_pb2.ROLE_USER, content="Xin chào?"),))


def source(settings: str) -> specs.Source:
    return specs.Source(
        specs.parse(f"""
tenants: [{{name: acme}}]
roles: [{{name: developer, permissions: [chat]}}]
policies: [{{name: default}}]
routes: [{{name: chat, task: chat, models: [local]}}]
models:
  - {{name: local, backend: {{type: modelserver, model: extractive}}, {settings}}}
""")
    )


@dataclass
class World:
    """A client of one model, with its attempts and waits."""

    client: ModelClient
    attempts: list[Attempt] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def ask(self) -> str:
        stream = self.client.generate(["local"], PROMPT, timeout_seconds=60, attempts=self.attempts)
        async with aclosing(stream) as events:
            return "".join([event.text async for event in events if isinstance(event, Delta)])


@asynccontextmanager
async def over(channel: grpc.aio.Channel, settings: str, *, sleeps: bool = False) -> AsyncIterator[World]:
    """sleeps: whether waits are real."""

    async def sleep(seconds: float) -> None:
        world.waits.append(seconds)
        if sleeps:
            await asyncio.sleep(seconds)

    client = ModelClient(source(settings), channel, Telemetry("orchestrator"), sleep=sleep)
    world = World(client)
    async with client:
        yield world


@asynccontextmanager
async def served(fake: FakeModelServer, settings: str) -> AsyncIterator[World]:
    testing.act_as()
    async with testing.served(fake.app(testing.VERIFIER)) as channel, over(channel, settings) as world:
        yield world


AWAY = pytest.mark.parametrize(
    "error", [Unavailable("The service stops; another replica can answer.", retry_after_seconds=1.0), Cancelled("stop")]
)


@AWAY
async def test_every_recorded_attempt_is_one_call_of_the_server(error: FactoryError) -> None:
    fake = FakeModelServer(["Xin"])
    fake.turns = [[error], [error], ["Xin"]]
    async with served(fake, "retry: {attempts: 3}") as world:
        assert await world.ask() == "Xin"
    assert [attempt.error_reason for attempt in world.attempts] == [error.reason, error.reason, ""]
    assert len(fake.requests) == 3


@AWAY
@pytest.mark.parametrize(("attempts", "calls"), [(1, 2), (2, 2), (3, 3)])
async def test_an_unavailable_server_is_called_as_often_as_recorded(
    error: FactoryError, attempts: int, calls: int
) -> None:
    fake = FakeModelServer([error])
    async with served(fake, f"retry: {{attempts: {attempts}}}") as world:
        with pytest.raises(errors.UpstreamFailed):
            await world.ask()
    assert len(fake.requests) == len(world.attempts) == calls


@AWAY
async def test_a_request_that_meets_a_stopping_replica_is_resent_at_once_also_with_one_attempt(
    error: FactoryError,
) -> None:
    fake = FakeModelServer(["Xin"])
    fake.turns = [[error]]
    async with served(fake, "retry: {attempts: 1, initial_backoff_seconds: 30, max_backoff_seconds: 60}") as world:
        assert await world.ask() == "Xin"
    (wait,) = world.waits
    assert wait <= 0.1
    assert len(fake.requests) == 2


@AWAY
async def test_an_answer_that_has_begun_is_not_resent(error: FactoryError) -> None:
    fake = FakeModelServer(["Xin", error])
    async with served(fake, "retry: {attempts: 3}") as world:
        with pytest.raises(errors.UpstreamFailed, match="broke off in its middle"):
            await world.ask()
    assert len(fake.requests) == len(world.attempts) == 1


@AWAY
async def test_a_drain_leaves_the_circuit_closed_and_an_absent_model_opens_it(error: FactoryError) -> None:
    fake = FakeModelServer(["Xin"])
    async with served(fake, "retry: {attempts: 1}, circuit_breaker: {failures: 1, open_seconds: 300}") as world:
        for _ in range(8):
            fake.turns = [[error]]
            assert await world.ask() == "Xin"
        fake.script = [error]
        for calls in (18, 18):  # the second request meets an open circuit
            with pytest.raises(errors.UpstreamFailed):
                await world.ask()
            assert len(fake.requests) == calls
    assert world.attempts[-1].error_reason == Reason.UNAVAILABLE


async def test_calls_of_an_unreachable_model_server_wait_only_for_the_channels_patience(tmp_path: Path) -> None:
    testing.act_as()
    settings = "retry: {attempts: 1}, circuit_breaker: {failures: 1}"
    async with (
        channels.connect(f"unix:{tmp_path / 'nobody.sock'}", patience_seconds=0.2) as channel,
        over(channel, settings) as world,
    ):
        for _ in range(2):  # the second meets an open circuit
            with pytest.raises(errors.UpstreamFailed):
                await world.ask()
    assert [attempt.error_reason for attempt in world.attempts] == [Reason.UNAVAILABLE] * 2
    assert not world.waits
    assert world.attempts[0].duration_seconds >= 0.2 > world.attempts[1].duration_seconds


async def test_retries_of_an_outage_are_bounded_to_a_share_of_the_requests() -> None:
    fake = FakeModelServer([Unavailable("away")])
    settings = "retry: {attempts: 10, initial_backoff_seconds: 0.001}, circuit_breaker: {failures: 100000}"
    requests = 50
    async with served(fake, settings) as world:
        for _ in range(requests):
            with pytest.raises(errors.UpstreamFailed):
                await world.ask()
    assert len(fake.requests) == len(world.attempts)
    assert requests < len(fake.requests) <= requests * 1.2 + 10


async def test_a_replica_that_stops_under_load_loses_no_request() -> None:
    testing.act_as()
    fakes = [FakeModelServer(["Xin"]) for _ in range(2)]
    servers, ports = [], []
    for fake in fakes:
        server = grpc.aio.server()
        modelserver_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    try:
        async with (
            channels.connect(address) as channel,
            over(channel, "retry: {attempts: 1}, circuit_breaker: {failures: 1}", sleeps=True) as world,
        ):

            async def client() -> list[str]:
                return [await world.ask() for _ in range(25)]

            async with asyncio.TaskGroup() as group:
                clients = [group.create_task(client()) for _ in range(8)]
                while len(fakes[0].requests) < 20 or len(fakes[1].requests) < 20:  # noqa: ASYNC110  # both take part
                    await asyncio.sleep(0.005)
                await servers[0].stop(5)
            assert [task.result() for task in clients] == [["Xin"] * 25] * 8
            assert await world.ask() == "Xin"
    finally:
        for server in servers:
            await server.stop(0)
    assert [attempt.error_reason for attempt in world.attempts].count("") == 201
