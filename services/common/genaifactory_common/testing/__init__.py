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
"""Who tests are by default."""


def act_as(caller: identity.Caller = CALLER) -> None:
    """Makes the running task's calls come from `caller`, as the gateway would."""
    identity.set_current(caller, ISSUED.of(caller), REQUEST_ID)


def metadata(method: str) -> passes.Metadata:
    """What a call of "/package.Service/Method" shows for CALLER, for stubs that are not called by `channels`."""
    return ISSUED.metadata(CALLER, method, 60)


def signed(method: str, caller: identity.Caller = CALLER, signer: tokens.Signer = SIGNER) -> str:
    """A token with which `caller` may call "/package.Service/Method"."""
    return signer.sign(caller, rpcs.service(method), [method.rpartition("/")[2]])


def struct(value: Mapping[str, Any]) -> Struct:
    """A JSON object as a message has it."""
    made = Struct()
    made.update(value)
    return made


@asynccontextmanager
async def served(app: ServiceApp, *, drain_seconds: float = 1.0) -> AsyncIterator[grpc.aio.Channel]:
    """Runs the service on a unix socket of its own; yields a channel to it."""
    # Not below tmp_path: a unix socket's path is bounded to about 100 bytes.
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
    """Ends a test as nobody, so that the next one is not by chance somebody."""
    yield
    identity.forget()


@pytest.fixture(autouse=True)
def no_blocking(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fails a test whose async code blocks. `@pytest.mark.allow_blocking` is for code that blocks by its nature."""
    if request.node.get_closest_marker("allow_blocking"):
        yield None
        return
    with blockbuster_ctx() as buster:
        yield buster


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin's marker, and keeps tests from a collector or proxy named in the environment."""
    config.addinivalue_line("markers", "allow_blocking: the test's async code may block the event loop")
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # scripted upstreams are on loopback
    # grpc.aio stops its polling thread when its last channel or server is collected, and waits for the thread there,
    # which may be in the midst of async code: hold it for the whole run.
    grpc.aio.init_grpc_aio()
