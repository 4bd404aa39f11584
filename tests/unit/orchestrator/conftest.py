"""The real orchestrator between fake services, all on unix sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, specs
from genaifactory_common.errors import FactoryError
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import CALLER, SIGNER, VERIFIER, act_as, served
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_common.testing.monitor import FakeMonitor
from genaifactory_common.testing.postgres import PostgresServer, postgres_server
from genaifactory_common.testing.retriever import FakeRetriever, passage
from genaifactory_common.testing.safety import FakeSafety
from genaifactory_orchestrator.app import Channels, create_app
from genaifactory_orchestrator.settings import Settings

FACTORY = """
tenants: [{name: acme}, {name: other}]
roles: [{name: developer, permissions: [chat, embed]}]
models:
  - {name: small, backend: {type: modelserver, model: small}, retry: {attempts: 1},
     price: {input_per_million_tokens: 1, output_per_million_tokens: 2}}
  - {name: spare, backend: {type: modelserver, model: spare}, retry: {attempts: 1}}
  - {name: minilm, kind: embedding, backend: {type: modelserver, model: minilm}}
routes:
  - {name: chat, task: chat, models: [small, spare]}
  - {name: rag, task: rag, models: [small, spare], prompt: rag, knowledge_base: docs}
  - {name: quick, task: chat, models: [small], timeout_seconds: 0.3, cache: {enabled: false}}
  - {name: other, task: rag, models: [small], prompt: rag, knowledge_base: secret}
  - {name: others-talk, task: chat, models: [small], knowledge_base: secret}
prompts:
  - name: rag
    version: 2
    system: "Answer {{ tenant }} from:\\n{% for p in passages %}{{ p.title }}: {{ p }}\\n{% endfor %}"
    refusal: {en: I cannot say., vi: Tôi không rõ.}
knowledge_bases: [{name: docs}, {name: secret, tenants: [other]}]
policies: [{name: default, rules: [{entities: [PII]}]}]
"""

_numbers = itertools.count(1)


@dataclass
class Answer:
    """All events of one answer."""

    events: list[orchestrator_pb2.AnswerResponse] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """Kinds of events in order, repetitions as one."""
        return [kind for kind, _ in itertools.groupby(str(event.WhichOneof("event")) for event in self.events)]

    def text(self, choice: int = 0) -> str:
        return "".join(e.delta.text for e in self.events if e.HasField("delta") and e.delta.choice == choice)

    @property
    def done(self) -> orchestrator_pb2.AnswerDone:
        assert self.events[-1].HasField("done")
        return self.events[-1].done

    @property
    def tool_calls(self) -> list[types_pb2.ToolCall]:
        return [event.tool_call.tool_call for event in self.events if event.HasField("tool_call")]

    @property
    def verdicts(self) -> list[types_pb2.Verdict]:
        return [event.verdict for event in self.events if event.HasField("verdict")]


@dataclass
class World:
    """The orchestrator and the services that it calls."""

    safety: FakeSafety
    retriever: FakeRetriever
    modelserver: FakeModelServer
    monitor: FakeMonitor
    source: specs.Source
    settings: Settings
    stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub

    def request(self, question: str = "How many days of leave?", **fields: Any) -> orchestrator_pb2.AnswerRequest:
        """A request with a new id; `messages` replaces the question."""
        fields.setdefault("messages", [user(question)])
        fields.setdefault("route", "rag")
        fields.setdefault("request_id", f"req-{next(_numbers)}")
        return orchestrator_pb2.AnswerRequest(**fields)

    async def ask(self, question: str = "How many days of leave?", **fields: Any) -> Answer:
        """The whole answer. Raises FactoryError."""
        return await self.send(self.request(question, **fields))

    async def send(self, request: orchestrator_pb2.AnswerRequest) -> Answer:
        answer = Answer()
        async for event in channels.stream(self.stub.Answer, request, timeout_seconds=20):
            answer.events.append(event)
        return answer

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds that has no event."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # another service's counter
                await asyncio.sleep(0.001)

    async def recorded(self, request_id: str) -> monitor_pb2.Interaction:
        """The request's interaction, once it has arrived."""
        while request_id not in self.monitor.interactions:
            await self.monitor.arrived(len(self.monitor.interactions) + 1)
        return self.monitor.interactions[request_id]

    async def failure(
        self, question: str = "How many days of leave?", **fields: Any
    ) -> tuple[FactoryError, monitor_pb2.Interaction]:
        """The error of a request, and its interaction."""
        request = self.request(question, **fields)
        with pytest.raises(FactoryError) as caught:
            await self.send(request)
        return caught.value, await self.recorded(request.request_id)


def user(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, content=text)


def assistant(text: str) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=text)


MakeWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    """Starts a world; `fields` are fields of Settings. A second world of one test uses the first one's files."""

    @asynccontextmanager
    async def make(factory: str = FACTORY, telemetry: Telemetry | None = None, **fields: Any) -> AsyncIterator[World]:
        settings = Settings(
            context_public_key=SIGNER.public_key,
            data_dir=tmp_path / "orchestrator",
            **{"outbox": {"gather_seconds": 0, "flush_seconds": 2}, **fields},
        )
        found = [passage("Leave is 14 days."), passage("Ask HR.", number=2)]
        safety = FakeSafety()
        retriever = FakeRetriever(found)
        modelserver = FakeModelServer(["You have ", "14 days [1]."])
        monitor = FakeMonitor()
        source = specs.Source(specs.parse(factory))
        act_as(CALLER)
        async with AsyncExitStack() as stack:
            opened: list[grpc.aio.Channel] = [
                await stack.enter_async_context(served(fake.app(VERIFIER), drain_seconds=0.1))
                for fake in (safety, retriever, modelserver, monitor)
            ]
            app = create_app(settings, source, Channels(*opened), telemetry or Telemetry("orchestrator"))
            channel = await stack.enter_async_context(served(app))
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            yield World(safety, retriever, modelserver, monitor, source, settings, stub)

    return make


@pytest.fixture
async def world(make_world: MakeWorld) -> AsyncIterator[World]:
    """A world with the defaults."""
    async with make_world() as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; skips where none is installed."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty database of conversations, once of each kind; None: SQLite."""
    if request.param == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()
