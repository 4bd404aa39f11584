"""How one service calls another: channels, and calls that carry the caller, the trace and a deadline.

    channel = connect("dns:///retriever:50051", tls)
    stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
    response = await unary(stub.Search, request, timeout_seconds=5)
    async for event in stream(stub.Generate, request, timeout_seconds=60): ...

Every call raises a FactoryError, never grpc's own errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from genaifactory_common import identity, settings, telemetry
from genaifactory_common.errors import DeadlineExceeded, FactoryError, Unavailable, from_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# Methods that may run twice without harm; only these are sent again by the channel, when a server was not reached or
# said before its first message that another may answer.
_IDEMPOTENT = (
    ("genaifactory.safety.v1.SafetyService", "CheckText"),
    ("genaifactory.retriever.v1.RetrieverService", "Search"),
    ("genaifactory.retriever.v1.RetrieverService", "ListIndexes"),
    ("genaifactory.retriever.v1.RetrieverService", "DeleteDocuments"),
    ("genaifactory.modelserver.v1.ModelService", "Generate"),
    ("genaifactory.modelserver.v1.ModelService", "Embed"),
    ("genaifactory.modelserver.v1.ModelService", "ListModels"),
    ("genaifactory.orchestrator.v1.OrchestratorService", "DeleteConversation"),
    ("genaifactory.monitor.v1.MonitorService", "RecordInteractions"),
    ("genaifactory.monitor.v1.MonitorService", "RecordFeedback"),
    ("genaifactory.monitor.v1.MonitorService", "QueryInteractions"),
    ("genaifactory.monitor.v1.MonitorService", "GetUsage"),
)

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": service, "method": method} for service, method in _IDEMPOTENT],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.2},
}
# Behind a name there are several servers: calls go to those that say they serve, not to one that loads or drains. The
# one behind a socket is asked whatever it says: its own words tell more.
_BY_NAME = json.dumps({**_SERVICE_CONFIG, "healthCheckConfig": {"serviceName": ""}})
_BY_SOCKET = json.dumps(_SERVICE_CONFIG)

_deadline: ContextVar[float | None] = ContextVar("genaifactory_deadline", default=None)


def set_deadline(seconds_from_now: float) -> None:
    """Bounds every call of the running task and of what it starts."""
    _deadline.set(time.monotonic() + seconds_from_now)


def remaining_seconds() -> float | None:
    """Until the deadline of the request in hand; None when there is none."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def connect(address: str, tls: settings.Tls | None = None) -> grpc.aio.Channel:
    """A channel to `address` (dns:///NAME:PORT or unix:PATH), over mTLS when `tls` is given. Opens on first use.

    Of the servers behind a DNS name it calls, in turn, those whose health says that they serve.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _BY_NAME if address.startswith("dns:") else _BY_SOCKET),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Channels of one process to one address must not share a connection's fate across event loops.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.private_key.read_bytes(),
        certificate_chain=tls.certificate.read_bytes(),
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


def _timeout(timeout_seconds: float) -> float:
    remaining = remaining_seconds()
    if remaining is None:
        return timeout_seconds
    if remaining <= 0:
        raise DeadlineExceeded("The request's deadline has passed.")
    return min(timeout_seconds, remaining)


def _metadata() -> list[tuple[str, str]]:
    metadata = telemetry.inject()
    if token := identity.current_token():
        metadata.append((identity.METADATA_KEY, token))
    return metadata


async def unary(
    method: Callable[..., grpc.aio.UnaryUnaryCall[Request, Response]], request: Request, *, timeout_seconds: float
) -> Response:
    """Calls a unary method; the request's own deadline shortens `timeout_seconds`. Raises FactoryError."""
    try:
        return await method(request, timeout=_timeout(timeout_seconds), metadata=_metadata())
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None


async def stream(
    method: Callable[..., grpc.aio.UnaryStreamCall[Request, Response]], request: Request, *, timeout_seconds: float
) -> AsyncGenerator[Response, None]:
    """Calls a server-streaming method; leaving the iteration cancels the call. Raises FactoryError."""
    call = method(request, timeout=_timeout(timeout_seconds), metadata=_metadata())
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        call.cancel()


class Duplex:
    """A bidirectional call: `send`, `done_sending`, and iterate for responses; a context manager that ends it."""

    def __init__(self, method: Callable[..., grpc.aio.StreamStreamCall[Any, Any]], *, timeout_seconds: float) -> None:
        self._call = method(timeout=_timeout(timeout_seconds), metadata=_metadata())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def accepted(self) -> None:
        """Waits until the server has sent its initial metadata, where a method says that it does so once it has let
        the call in. Raises the FactoryError that it refuses the call with, which a `send` in that moment would lose.
        """
        await self._call.initial_metadata()
        if self._call.done():
            raise await self._failure()

    async def send(self, message: Any) -> None:
        """Sends; waits while the peer is not reading. Raises FactoryError."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except asyncio.InvalidStateError:
            raise await self._failure() from None

    async def done_sending(self) -> None:
        """Says that nothing more will be sent. A call that has failed by now says so to its reader."""
        try:
            await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except asyncio.InvalidStateError:
            raise await self._failure() from None

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    def close(self) -> None:
        """Ends the call; a peer that still works on it is cancelled."""
        self._call.cancel()

    async def _failure(self) -> FactoryError:
        # The call ended before we were done sending: its status says why.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            code = await self._call.code()
            if code is grpc.StatusCode.OK:
                return Unavailable("The peer ended the call before everything was sent.")
            details = await self._call.details()
            error = grpc.aio.AioRpcError(
                code, await self._call.initial_metadata(), await self._call.trailing_metadata(), details
            )
            return from_rpc(error)
        return FactoryError("The call ended early.")
