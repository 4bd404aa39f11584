"""A real gRPC service with scripted answers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import testing
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from tests import ports

SERVICE = "genaifactory.safety.v1.SafetyService"
CHECK_TEXT = f"/{SERVICE}/CheckText"


def answer(text: str) -> safety_pb2.CheckTextResponse:
    return safety_pb2.CheckTextResponse(text=text)


def released(text: str) -> safety_pb2.CheckStreamResponse:
    return safety_pb2.CheckStreamResponse(released=text)


class Scripted(safety_pb2_grpc.SafetyServiceServicer):
    """SafetyService as an example of any service: one unary method and one bidirectional one."""

    def __init__(self) -> None:
        self.unary: Callable[[safety_pb2.CheckTextRequest], Awaitable[safety_pb2.CheckTextResponse]] = self._echo
        self.duplex: Callable[
            [AsyncIterator[safety_pb2.CheckStreamRequest]], AsyncIterator[safety_pb2.CheckStreamResponse]
        ] = self._echo_all

    async def CheckText(self, request: safety_pb2.CheckTextRequest, context: object) -> safety_pb2.CheckTextResponse:
        return await self.unary(request)

    async def CheckStream(
        self, request_iterator: AsyncIterator[safety_pb2.CheckStreamRequest], context: object
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        async for response in self.duplex(request_iterator):
            yield response

    async def _echo(self, request: safety_pb2.CheckTextRequest) -> safety_pb2.CheckTextResponse:
        return answer(request.text)

    async def _echo_all(
        self, requests: AsyncIterator[safety_pb2.CheckStreamRequest]
    ) -> AsyncIterator[safety_pb2.CheckStreamResponse]:
        async for request in requests:
            yield released(request.text)

    def app(self, telemetry: Telemetry | None = None, **fields: Any) -> ServiceApp:
        app = ServiceApp(
            name="scripted",
            telemetry=telemetry or Telemetry("scripted"),
            service_names=(SERVICE,),
            register=lambda server: safety_pb2_grpc.add_SafetyServiceServicer_to_server(self, server),
            lifespan=no_lifespan,
            verifier=testing.VERIFIER,
        )
        return dataclasses.replace(app, **fields)


@asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


@pytest.fixture
def scripted() -> Scripted:
    """A service that echoes unless a test replaces its behaviour."""
    return Scripted()


@pytest.fixture
def free_port() -> int:
    """See ports.free_port."""
    return ports.free_port()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket in it."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        yield Path(folder)
