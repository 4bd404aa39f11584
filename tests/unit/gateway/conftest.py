"""Fixtures: a real gateway on real sockets, over a scripted orchestrator and a small monitor."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import httpx
import pytest
import pytest_asyncio
import uvloop
from pydantic import SecretStr

from genaifactory_common import channels, specs, testing
from genaifactory_common import settings as common_settings
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.feedback import FakeFeedbackStore
from genaifactory_common.testing.orchestrator import FakeOrchestrator
from genaifactory_common.testing.retriever import FakeRetriever
from genaifactory_gateway.app import Channels, create_app
from genaifactory_gateway.quotas import MemoryQuotas
from genaifactory_gateway.settings import Http, Settings, Transfers

USER, COLLEAGUE, BETA = "sk-acme-user", "sk-acme-colleague", "sk-beta-user"
CHATTER, VIEWER, EDITOR = "sk-acme-chatter", "sk-acme-viewer", "sk-acme-editor"
ADMIN, BETA_ADMIN = "sk-acme-admin", "sk-beta-admin"

FACTORY = f"""
tenants:
  - name: acme
    limits: {{requests_per_minute: 6000, tokens_per_minute: 1000000}}
    keys:
      - {{id: user, sha256: {specs.hash_key(USER)}, role: user, groups: [staff]}}
      - {{id: colleague, sha256: {specs.hash_key(COLLEAGUE)}, role: user}}
      - {{id: chatter, sha256: {specs.hash_key(CHATTER)}, role: chatter}}
      - {{id: viewer, sha256: {specs.hash_key(VIEWER)}, role: viewer}}
      - {{id: editor, sha256: {specs.hash_key(EDITOR)}, role: editor, groups: [staff]}}
      - {{id: admin, sha256: {specs.hash_key(ADMIN)}, role: admin}}
  - name: beta
    limits: {{requests_per_minute: 3, tokens_per_minute: 3000}}
    keys:
      - {{id: beta, sha256: {specs.hash_key(BETA)}, role: user}}
      - {{id: beta-admin, sha256: {specs.hash_key(BETA_ADMIN)}, role: admin}}
roles:
  - {{name: user, permissions: [chat, embed, models, feedback, usage]}}
  - {{name: chatter, permissions: [chat, embed, models], routes: [chat]}}
  - {{name: viewer, permissions: [models]}}
  - {{name: editor, permissions: [ingest]}}
  - {{name: admin, permissions: [chat, embed, models, feedback, usage, ingest, export, evaluate, operate]}}
models:
  - {{name: extractive, backend: {{type: modelserver, model: extractive}}}}
  - {{name: minilm, kind: embedding, description: Small., backend: {{type: modelserver, model: minilm}}}}
routes:
  - {{name: chat, task: chat, description: Talks., models: [extractive], max_output_tokens: 500}}
  - {{name: rag, task: rag, models: [extractive], prompt: rag, knowledge_base: documents}}
  - {{name: secret-plan, task: rag, models: [extractive], prompt: rag, knowledge_base: beta-only}}
prompts: [{{name: rag, version: 1, system: Answer.}}]
knowledge_bases:
  - {{name: documents}}
  - {{name: beta-only, tenants: [beta]}}
policies: [{{name: default}}]
"""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As in production."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Gateway:
    """A running gateway, its client, and the services behind it."""

    orchestrator: FakeOrchestrator
    monitor: FakeFeedbackStore
    retriever: FakeRetriever
    source: specs.Source
    clock: Clock
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    address: str

    @property
    def base_url(self) -> str:
        return f"http://{self.address}/v1"

    async def post(
        self, path: str, body: object, *, key: str | None = USER, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Posts JSON, or the bytes given."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {"content-type": "application/json"}
        if key is not None:
            own["authorization"] = f"Bearer {key}"
        named = own | dict(headers or {})
        return await self.http.post(
            path, content=content, headers={name.encode(): value.encode("latin-1") for name, value in named.items()}
        )

    async def get(self, path: str, *, key: str | None = USER) -> httpx.Response:
        return await self.http.get(path, headers={} if key is None else {"authorization": f"Bearer {key}"})

    async def delete(self, path: str, *, key: str | None = USER) -> httpx.Response:
        return await self.http.delete(path, headers={} if key is None else {"authorization": f"Bearer {key}"})

    async def chat(self, key: str | None = USER, **fields: object) -> httpx.Response:
        """A chat completion, with a question unless `messages` are given."""
        body = {"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]} | fields
        return await self.post("/v1/chat/completions", body, key=key)


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def at_rest(count: Callable[[], int]) -> int:
    """The count, once it is above zero and no longer grows."""
    last = 0
    while True:
        await asyncio.sleep(0.3)
        if 0 < last == count():
            return last
        last = count()


Start = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def start() -> Start:
    """Starts a gateway: start(max_concurrent_requests=…, http=Http(…), telemetry=…)."""
    return _started


@asynccontextmanager
async def _started(
    *,
    http: Http | None = None,
    max_concurrent_requests: int = 512,
    max_body_bytes_at_once: int = 64 << 20,
    max_concurrent_calls: int = 1024,
    telemetry: Telemetry | None = None,
    drain_seconds: float = 1.0,
    orchestrator_down: bool = False,
    transfers: Transfers | None = None,
    factory: str = FACTORY,
) -> AsyncIterator[Gateway]:
    settings = Settings(
        context_private_key=SecretStr(base64.b64encode(testing.SIGNER.private_key).decode()),
        http=(http or Http()).model_copy(update={"address": "127.0.0.1:0"}),
        server=common_settings.Server(drain_seconds=drain_seconds, max_concurrent_calls=max_concurrent_calls),
        max_concurrent_requests=max_concurrent_requests,
        max_body_bytes_at_once=max_body_bytes_at_once,
        transfers=transfers or Transfers(),
    )
    orchestrator, retriever, clock = FakeOrchestrator(), FakeRetriever(), Clock()
    monitor = FakeFeedbackStore()
    source = specs.Source(specs.parse(factory))
    async with (
        testing.served(orchestrator.app(testing.VERIFIER)) as to_orchestrator,
        testing.served(monitor.app(testing.VERIFIER)) as to_monitor,
        testing.served(retriever.app(testing.VERIFIER)) as to_retriever,
        channels.connect("unix:/nonexistent/orchestrator.sock") as to_nobody,
    ):
        app = create_app(
            settings,
            source,
            Channels(
                orchestrator=to_nobody if orchestrator_down else to_orchestrator,
                monitor=to_monitor,
                retriever=to_retriever,
                safety=to_nobody,
            ),
            telemetry or Telemetry("gateway"),
            quotas=MemoryQuotas(clock),
        )
        async with testing.served(app, drain_seconds=drain_seconds) as channel:
            address = app.http_address()
            async with httpx.AsyncClient(base_url=f"http://{address}", verify=False, timeout=20) as client:
                yield Gateway(orchestrator, monitor, retriever, source, clock, client, channel, address)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lasting_gateway() -> AsyncIterator[Gateway]:
    """A gateway for all tests of a module."""
    async with _started() as running:
        yield running


@pytest.fixture
async def gateway(start: Start) -> AsyncIterator[Gateway]:
    """A running gateway."""
    async with start() as running:
        yield running
