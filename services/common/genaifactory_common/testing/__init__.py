"""Fixtures and helpers for tests of any service; a pytest plugin.

`no_blocking` fails a test whose async code blocks the event loop. `served` runs a real service on a unix socket.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from google.protobuf.struct_pb2 import Struct

from genaifactory_common import channels, identity, passes, rpcs, settings, tokens
from genaifactory_common.followed import Fixed
from genaifactory_common.runtime import ServiceApp, running

SIGNER = tokens.Signer(bytes(range(32)))
"""The gateway's key in tests."""
VERIFIER = tokens.Verifier(Fixed(tokens.key_set([SIGNER.public_key])))
REQUEST_ID = "req-test"
ISSUED = passes.Issued(Fixed(SIGNER))

CALLER = identity.Caller(
    tenant="acme",
    principal="alice",
    key_id="alice",
    role="developer",
    permissions=("chat", "embed", "models", "feedback", "usage", "ingest", "export"),
    groups=("staff",),
)
"""The caller of tests, unless they set another."""


def act_as(caller: identity.Caller = CALLER) -> None:
    """Sets `caller` as the caller of the running task's calls, as the gateway would."""
    identity.set_current(caller, ISSUED.of(caller), REQUEST_ID)


def metadata(method: str) -> passes.Metadata:
    """Metadata of a call of "/package.Service/Method" by CALLER, for stubs that are not called through `channels`."""
    return ISSUED.metadata(CALLER, method, 60)


def signed(method: str, caller: identity.Caller = CALLER, signer: tokens.Signer = SIGNER) -> str:
    """A token with which `caller` may call "/package.Service/Method"."""
    return signer.sign(caller, rpcs.service(method), [method.rpartition("/")[2]])


def struct(value: Mapping[str, Any]) -> Struct:
    """A JSON object as a protobuf Struct."""
    made = Struct()
    made.update(value)
    return made


@asynccontextmanager
async def served(app: ServiceApp, *, drain_seconds: float = 1.0) -> AsyncIterator[grpc.aio.Channel]:
    """Runs the service on a unix socket of its own; yields a channel to it."""
    # Not below tmp_path: the path of a unix socket may have about 100 bytes.
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="gf-")
    try:
        address = f"unix:{Path(folder) / (app.name + '.sock')}"
        server_settings = settings.Server(address=address, drain_seconds=drain_seconds)
        async with running(app, server_settings), channels.connect(address) as channel:
            yield channel
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """Removes the caller at the end of each test, so that the next one begins without."""
    yield
    identity.forget()


@pytest.fixture(autouse=True)
def no_blocking(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fails a test whose async code blocks. `@pytest.mark.allow_blocking` is for code that has to block."""
    if request.node.get_closest_marker("allow_blocking"):
        yield None
        return
    with blockbuster_ctx() as buster:
        yield buster


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin's marker, and ignores a collector or proxy named in the environment."""
    config.addinivalue_line("markers", "allow_blocking: the test's async code may block the event loop")
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # scripted upstreams are on loopback
    # grpc.aio stops its polling thread when its last channel or server is collected, and waits for the thread, perhaps
    # within async code: keep it for the whole run.
    grpc.aio.init_grpc_aio()
