"""The issuer rotates the key of callers' tokens while a gateway and a service use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import httpx
import jwt
import pytest

from genaifactory_common import settings as common_settings
from genaifactory_common import specs, testing, tokens
from genaifactory_common.errors import Unauthenticated
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing.feedback import FakeFeedbackStore
from genaifactory_common.testing.orchestrator import FakeOrchestrator
from genaifactory_common.testing.retriever import FakeRetriever
from genaifactory_gateway.app import Channels, create_app
from genaifactory_gateway.settings import Http, Settings
from genaifactory_operator import issuer
from genaifactory_operator.configuration import Configuration
from genaifactory_operator.secret import Change, Secret
from tests.unit.gateway.conftest import FACTORY, USER
from tests.unit.operator.wanted import Memory

SIGNING, CHECKING = "signing", "checking"
ANSWER = "/genaifactory.orchestrator.v1.OrchestratorService/Answer"
# A kubelet writes a change after up to PROPAGATION seconds; the services read the files every two.
KUBELET_SECONDS, PROPAGATION_SECONDS, TOKEN_SECONDS = 0.5, 3.0, 0.2
CLIENTS = 8


class Cluster:
    """Two Secrets, each mounted as a folder whose files change some time after the Secret."""

    def __init__(self, folder: Path) -> None:
        self.wanted = Configuration.model_validate(
            {
                "namespace": "genai",
                "propagation_seconds": PROPAGATION_SECONDS,
                "context_key": {
                    "private_secret": SIGNING,
                    "public_secrets": [CHECKING],
                    "token_seconds": TOKEN_SECONDS,
                },
            }
        )
        self.folder = folder
        self._memory = Memory(self.wanted.secrets)
        issuer.run(self.wanted, self, print)  # type: ignore[arg-type]  # what it needs of a cluster's Secrets
        self.show()

    def read(self, name: str) -> Secret:
        return self._memory.secrets[name]

    def apply(self, change: Change, now: datetime) -> None:
        self._memory.apply(change, now)

    def rotate(self) -> None:
        """Runs the issuer's job: blocks until the old key is removed."""
        issuer.run(self.wanted, self, print, rotate_key=True)  # type: ignore[arg-type]

    def show(self) -> None:
        """Writes the Secrets' files, as a kubelet does."""
        for name in self.wanted.secrets:
            for key, value in self.read(name).data.items():
                new = self.folder / f".{key}.new"
                new.write_bytes(value)
                new.rename(self.folder / key)

    def signing_key(self) -> tokens.Signer:
        return tokens.Signer.parse(self.read(SIGNING).data["GENAIFACTORY_CONTEXT_PRIVATE_KEY"].decode())

    async def kubelet(self) -> None:
        while True:
            await asyncio.sleep(KUBELET_SECONDS)
            await asyncio.to_thread(self.show)


@asynccontextmanager
async def running(verifier: tokens.Verifier, gateway: Settings) -> AsyncIterator[tuple[FakeOrchestrator, str]]:
    """A gateway with an orchestrator; yields the orchestrator and the gateway's HTTP address."""
    orchestrator, retriever = FakeOrchestrator(), FakeRetriever()
    monitor = FakeFeedbackStore()
    async with (
        testing.served(orchestrator.app(verifier)) as to_orchestrator,
        testing.served(monitor.app(testing.VERIFIER)) as to_monitor,
        testing.served(retriever.app(testing.VERIFIER)) as to_retriever,
    ):
        to = Channels(orchestrator=to_orchestrator, monitor=to_monitor, retriever=to_retriever, safety=to_retriever)
        app = await asyncio.to_thread(create_app, gateway, specs.Source(specs.parse(FACTORY)), to, Telemetry("gateway"))
        async with testing.served(app):
            yield orchestrator, app.http_address()


@pytest.mark.slow
async def test_no_call_fails_while_the_signing_key_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LEEWAY_SECONDS", 0.5)  # one clock
    cluster = await asyncio.to_thread(Cluster, tmp_path)
    monkeypatch.setenv(common_settings.SECRETS_DIR, str(tmp_path))
    verifier = await asyncio.to_thread(lambda: common_settings.Common().verifier())
    gateway = await asyncio.to_thread(lambda: Settings(http=Http(address="127.0.0.1:0")))
    old = cluster.signing_key()
    statuses: list[int] = []
    stop = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hello?"}]}
        while not stop.is_set():
            response = await client.post("/v1/chat/completions", json=body)
            statuses.append(response.status_code)
            await asyncio.sleep(0.02)

    async with running(verifier, gateway) as (orchestrator, address):
        headers = {"authorization": f"Bearer {USER}"}
        async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=20) as client:
            clients = [asyncio.create_task(ask(client)) for _ in range(CLIENTS)]
            kubelet = asyncio.create_task(cluster.kubelet())
            await asyncio.to_thread(cluster.rotate)
            await asyncio.sleep(2.5 + KUBELET_SECONDS)  # until the last step is applied too
            kubelet.cancel()
            stop.set()
            await asyncio.gather(*clients)
        new = cluster.signing_key()
        shown = {_kid(metadata["x-genaifactory-context"]) for metadata in orchestrator.metadata}
        assert shown == {tokens.key_id(old.public_key), tokens.key_id(new.public_key)}
        assert _kid(orchestrator.metadata[-1]["x-genaifactory-context"]) == tokens.key_id(new.public_key)
        assert len(statuses) > 100
        assert set(statuses) == {200}
        # Tokens of the old key are refused now.
        with pytest.raises(Unauthenticated, match="not trusted"):
            await verifier.verify(testing.signed(ANSWER, signer=old), ANSWER)
        assert await verifier.verify(testing.signed(ANSWER, signer=new), ANSWER) == testing.CALLER


def _kid(token: str | bytes) -> str:
    return str(jwt.get_unverified_header(token)["kid"])
