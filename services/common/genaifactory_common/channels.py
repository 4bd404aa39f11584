"""Calls from one service to another: channels, and calls that carry the caller, the trace and a deadline.

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

from genaifactory_common import identity, passes, rpcs, settings, telemetry
from genaifactory_common.connection import Connection, Method
from genaifactory_common.errors import Cancelled, DeadlineExceeded, FactoryError, Unavailable, from_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# gRPC's default of 8 KiB is less than the tokens of a caller with many groups.
METADATA_OPTIONS = (("grpc.max_metadata_size", 64 * 1024), ("grpc.absolute_max_metadata_size", 80 * 1024))
"""Bounds of one call's metadata, for channels and servers."""

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            # The channel retries only these, when no server was reached or one returned a retryable status before its
            # first message.
            "name": [
                {"service": rpcs.service(method), "method": method.rpartition("/")[2]} for method in rpcs.idempotent()
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # gRPC itself cancels a call that reaches a server just after it began to stop.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.2},
}
# Behind a name there are several servers: calls go to those whose health is SERVING, not to one that loads or drains.
# The one behind a socket is called whatever its health: its own error is more precise.
_BY_NAME = json.dumps({**_SERVICE_CONFIG, "healthCheckConfig": {"serviceName": ""}})
_BY_SOCKET = json.dumps(_SERVICE_CONFIG)

_deadline: ContextVar[float | None] = ContextVar("genaifactory_deadline", default=None)


def set_deadline(seconds_from_now: float) -> None:
    """Sets the deadline of every call of the running task and of the tasks that it starts."""
    _deadline.set(time.monotonic() + seconds_from_now)


def remaining_seconds() -> float | None:
    """Seconds until the current request's deadline; None when it has none."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def connect(
    address: str, tls: settings.Trust | None = None, *, patience_seconds: float = 0.0, api_key: str = "", name: str = ""
) -> grpc.aio.Channel:
    """A channel to `address` (dns:///NAME:PORT or unix:PATH), with TLS when `tls` is given. Opens on first use.

    api_key: sent with each call; for clients of the gateway. name: the name that the server's certificate must have,
    where the address is an IP's (ipv4:HOST:PORT).

    Calls go, in turn, to those servers behind a DNS name whose health is SERVING. While there is none, calls made by
    `unary`, `stream` and `Duplex` wait for one, `patience_seconds` at most. Changes of the files of `tls` are followed.
    Raises InvalidArgument when the files are invalid.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _BY_NAME if address.startswith("dns:") else _BY_SOCKET),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        *METADATA_OPTIONS,
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Timeout of one attempt to connect: the address of a pod that is gone may not answer at all.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # With the default of 30 s a pod that replaces another would be found only then.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Channels of one process to one address must not share a connection across event loops.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return Connection(address, options, tls, patience_seconds=patience_seconds, api_key=api_key)


async def _reached(method: Callable[..., Any]) -> dict[str, bool]:
    """Waits for a server if the channel has patience; returns the call's options. Raises Unavailable."""
    if not isinstance(method, Method) or method.connection.patience_seconds == 0:
        return {}
    await method.connection.reached(_timeout(method.connection.patience_seconds))
    return {"wait_for_ready": True}  # that server may be gone again before the call is sent


def _name(method: Callable[..., Any]) -> str:
    return method.name if isinstance(method, Method) else "a call"


def _timeout(timeout_seconds: float) -> float:
    remaining = remaining_seconds()
    if remaining is None:
        return timeout_seconds
    if remaining <= 0:
        raise DeadlineExceeded("The request's deadline has passed.")
    return min(timeout_seconds, remaining)


def _metadata(method: Callable[..., Any], timeout_seconds: float) -> list[tuple[str, str]]:
    metadata = telemetry.inject()
    if (shown := identity.passes()) is not None and isinstance(method, Method):
        metadata.extend(shown.metadata(method.name, timeout_seconds))
        metadata.append((passes.REQUEST_ID, identity.request_id()))
    return metadata


async def unary(
    method: Callable[..., grpc.aio.UnaryUnaryCall[Request, Response]],
    request: Request,
    *,
    timeout_seconds: float,
    patient: bool = True,
) -> Response:
    """Calls a unary method; the request's own deadline shortens `timeout_seconds`, which counts from when a server is
    reached. patient: whether to wait for one as long as the channel allows. Raises FactoryError.
    """
    how = await _reached(method) if patient else {}
    try:
        timeout_seconds = _timeout(timeout_seconds)
        return await method(request, timeout=timeout_seconds, metadata=_metadata(method, timeout_seconds), **how)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, _name(method)) from None


async def stream(
    method: Callable[..., grpc.aio.UnaryStreamCall[Request, Response]], request: Request, *, timeout_seconds: float
) -> AsyncGenerator[Response, None]:
    """Calls a server-streaming method, as `unary`; ending the iteration cancels the call. Raises FactoryError."""
    how = await _reached(method)
    timeout_seconds = _timeout(timeout_seconds)
    call = method(request, timeout=timeout_seconds, metadata=_metadata(method, timeout_seconds), **how)
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, _name(method)) from None
    finally:
        call.cancel()


class Duplex:
    """A bidirectional call: `send`, `done_sending`, and iterate for responses; a context manager that ends it.

    The call begins with the first of these; `timeout_seconds` as in `unary`.
    """

    def __init__(self, method: Callable[..., grpc.aio.StreamStreamCall[Any, Any]], *, timeout_seconds: float) -> None:
        self._method = method
        self._timeout_seconds = timeout_seconds
        self._opening = asyncio.Lock()
        self._call: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def accepted(self) -> None:
        """Waits for the initial metadata, of methods whose contract is to send it once they have accepted the call.

        Raises the FactoryError with which the server refuses the call; a `send` at that moment would lose it.
        """
        call = await self._opened()
        await call.initial_metadata()
        if call.done():
            raise await _failure(call, _name(self._method))

    async def send(self, message: Any) -> None:
        """Sends; waits while the peer is not reading. Raises FactoryError."""
        call = await self._opened()
        try:
            await call.write(message)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, _name(self._method)) from None
        except asyncio.InvalidStateError:
            raise await _failure(call, _name(self._method)) from None

    async def done_sending(self) -> None:
        """Ends the sending side. Raises FactoryError when the call has failed by now."""
        call = await self._opened()
        try:
            await call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, _name(self._method)) from None
        except asyncio.InvalidStateError:
            raise await _failure(call, _name(self._method)) from None

    async def __aiter__(self) -> AsyncIterator[Any]:
        call = await self._opened()
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, _name(self._method)) from None

    def close(self) -> None:
        """Ends the call; the server's work on it is cancelled."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def _opened(self) -> grpc.aio.StreamStreamCall[Any, Any]:
        if self._call is not None:
            return self._call
        async with self._opening:  # a reader and a sender may both be the first
            if self._call is None:
                how = await _reached(self._method)
                if self._closed:
                    raise Cancelled("The call was ended before it began.")
                seconds = _timeout(self._timeout_seconds)
                self._call = self._method(timeout=seconds, metadata=_metadata(self._method, seconds), **how)
            return self._call


async def _failure(call: grpc.aio.StreamStreamCall[Any, Any], name: str) -> FactoryError:
    # The call ended before all was sent: its status has the reason.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        code = await call.code()
        if code is grpc.StatusCode.OK:
            return Unavailable("The peer ended the call before everything was sent.")
        details = await call.details()
        error = grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)
        return from_rpc(error, name)
    return FactoryError("The call ended early.")
