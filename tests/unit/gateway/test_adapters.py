"""Adapters are loaded over mTLS on every replica of the model server, found by a DNS name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from genaifactory.gateway.v1 import gateway_pb2 as pb
from genaifactory_common import runtime, settings, specs, testing
from genaifactory_common.certificates import Authority
from genaifactory_common.errors import FactoryError, InvalidArgument, Reason, Unavailable
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_gateway.adapters import Adapters
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.limits import Limiter
from genaifactory_gateway.quotas import MemoryQuotas
from tests.unit.gateway.conftest import ADMIN, FACTORY

NAME = "factory-modelserver-pods"
GATEWAY = "spiffe://cluster.local/ns/genai/sa/factory-gateway"
pytestmark = pytest.mark.allow_blocking  # reads certificates
WANTED = pb.LoadAdapterRequest(name="a", source_uri="/adapters/a", sha256="ab", base_model="qwen")


@dataclass
class Replicas:
    """Model servers on several loopback addresses, with the same port."""

    servers: list[FakeModelServer]
    adapters: Adapters
    addresses: list[str]

    async def load(self) -> int:
        """Raises FactoryError."""
        async with _admitted() as entry:
            return (await self.adapters.load(entry, WANTED)).replicas


@asynccontextmanager
async def _admitted() -> AsyncIterator[Any]:
    source = specs.Source(specs.parse(FACTORY))
    limiter = Limiter(MemoryQuotas())
    admission = Admission(source, testing.ISSUED, limiter, max_concurrent_requests=5, max_body_bytes=1 << 20)
    async with admission.admit(f"Bearer {ADMIN}", "LoadAdapter", "req-1") as entry:
        yield entry


def _issue(authority: Authority, folder: Path, identity: str, name: str) -> settings.Tls:
    made = authority.issue(identity, [name], valid=timedelta(days=1))
    files = settings.Tls(
        certificate=folder / f"{name}.crt", private_key=folder / f"{name}.key", ca=folder / f"{name}-ca.crt"
    )
    files.certificate.write_bytes(made.certificate)
    files.private_key.write_bytes(made.key)
    files.ca.write_bytes(authority.pem)
    return files


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
async def replicas(tmp_path: Path, port: int) -> AsyncIterator[Replicas]:
    """Three."""
    authority = await asyncio.to_thread(Authority.create, "test", valid=timedelta(days=1))
    own = await asyncio.to_thread(_issue, authority, tmp_path, GATEWAY, "factory-gateway")
    shown = await asyncio.to_thread(_issue, authority, tmp_path, "spiffe://cluster.local/ns/genai/sa/m", NAME)
    addresses: list[str] = []

    async def resolve(host: str, _: int) -> list[str]:
        assert host == NAME
        return addresses

    adapters = Adapters(f"dns:///{NAME}:{port}", own, timeout_seconds=10, resolve=resolve)
    world = Replicas([FakeModelServer() for _ in range(3)], adapters, addresses)
    async with AsyncExitStack() as stack:
        for number, server in enumerate(world.servers, start=1):
            address = f"127.0.0.{number}"
            listening = settings.Server(address=f"{address}:{port}", tls=shown, callers=(GATEWAY,), drain_seconds=0.1)
            await stack.enter_async_context(runtime.running(server.app(testing.VERIFIER), listening))
            world.addresses.append(address)
        yield world


async def test_an_adapter_is_loaded_on_every_replica_with_the_callers_identity(replicas: Replicas) -> None:
    assert await replicas.load() == 3
    for server in replicas.servers:
        assert server.adapters["a"].source_uri == "/adapters/a"
        assert [(caller.tenant, caller.key_id) for caller in server.callers] == [("acme", "admin")]
    async with _admitted() as entry:
        assert (await replicas.adapters.unload(entry, pb.UnloadAdapterRequest(name="a"))).replicas == 3
    assert not any(server.adapters for server in replicas.servers)


async def test_a_replica_that_fails_to_load_an_adapter_is_reported(replicas: Replicas) -> None:
    replicas.servers[1].adapter_error = Unavailable("The disk is away.")
    with pytest.raises(Unavailable, match=r"Done on 2 of 3 replicas.*The disk is away\.") as failed:
        await replicas.load()
    assert failed.value.retry_after_seconds
    replicas.servers[1].adapter_error = None
    assert await replicas.load() == 3


async def test_a_refusal_of_every_replica_is_returned_unchanged(replicas: Replicas) -> None:
    for server in replicas.servers:
        server.adapter_error = InvalidArgument("The rank is too high.", field="source_uri")
    with pytest.raises(InvalidArgument, match="The rank is too high") as refused:
        await replicas.load()
    assert refused.value.field == "source_uri"


async def test_loading_an_adapter_without_a_model_server_is_unimplemented() -> None:
    async with _admitted() as entry:
        with pytest.raises(FactoryError, match="has no model server") as refused:
            await Adapters("", None, timeout_seconds=1).load(entry, WANTED)
    assert refused.value.reason is Reason.UNIMPLEMENTED


async def test_a_name_without_addresses_is_unavailable(replicas: Replicas) -> None:
    replicas.addresses.clear()
    with pytest.raises(Unavailable, match="cannot be found"):
        await replicas.load()
