"""What is done for every served call, in this order: credentials, deadline, caller, permission, trace, error mapping,
metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from genaifactory_common import channels, errors, garbage, identity, passes, rpcs, telemetry, tokens
from genaifactory_common.errors import FactoryError
from genaifactory_common.telemetry import Telemetry

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 0.5
# Calls without valid credentials whose messages are read at once; each takes the memory of one message.
_MAX_DRAINING = 8
_LONGEST_ID = 128
# Served to anyone who can connect: clients check health before they call.
_HEALTH = "/grpc.health.v1."
# For tools, which send no caller.
_REFLECTION = "/grpc.reflection."


Metadata = Iterable[tuple[str, Any]]


class Gate(Protocol):
    """Admits calls of clients with credentials of their own, before a message of them is read, and so takes memory."""

    def authenticate(self, metadata: Metadata) -> str:
        """The owner of the credentials in a call's metadata. Raises FactoryError."""

    def called(self, owner: str) -> contextlib.AbstractContextManager[None]:
        """One of the owner's places for calls, until the call ends. Raises Overloaded."""

    def reading(self, owner: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Bounds the number of messages that are read at once, and the time. Raises DeadlineExceeded."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server."""

    def __init__(
        self,
        service_telemetry: Telemetry,
        verifier: tokens.Verifier | None,
        *,
        callers: frozenset[str] = frozenset(),
        default_timeout_seconds: float = 600.0,
        gate: Gate | None = None,
    ) -> None:
        """verifier: None where clients call with their own credentials (the gateway), which `gate` checks.

        callers: URIs in the certificates that may call; empty: the server requires no certificates. A method whose
        contract does not declare who may call it is refused.
        """
        self._telemetry = service_telemetry
        self._verifier = verifier
        self._callers = frozenset(uri.encode() for uri in callers)
        self._default_timeout_seconds = default_timeout_seconds
        self._gate = gate
        self._running: set[asyncio.Timeout] = set()
        self._stopping = False
        self._draining = 0  # calls that were refused, and whose messages are read
        self.last_call_at = -math.inf
        """When the latest call arrived, on the loop's clock, without those of health and reflection."""

    def end_running(self) -> None:
        """Ends every running call with Unavailable: the server stops, and another replica can answer."""
        self._stopping = True
        now = asyncio.get_running_loop().time()
        for bound in self._running:
            if not bound.expired():
                bound.reschedule(now)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler, except those of health, open to anyone, and of reflection, open to any peer."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if method.startswith(_HEALTH):
            return garbage.refusing(handler, method)
        deserializer = garbage.tolerant(handler.request_deserializer)
        if method.startswith(_REFLECTION):
            return grpc.stream_stream_rpc_method_handler(
                self._reflection(method, handler.stream_stream), deserializer, handler.response_serializer
            )
        admitted = None
        if self._gate is not None:
            try:
                owner = self._gate.authenticate(handler_call_details.invocation_metadata or ())
            except FactoryError as error:
                return self._refused(method, error, streaming=handler.request_streaming)
            admitted = _Admitted(self._gate, owner, reads_one=not handler.request_streaming)
        # A handler of one message begins when gRPC has it; where the message is to be bounded, the handler reads it.
        streaming = handler.request_streaming or admitted is not None
        if handler.response_streaming:
            wrapped_stream = self._stream(method, handler.unary_stream or handler.stream_stream, admitted)
            factory = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_stream_rpc_method_handler
            return factory(wrapped_stream, deserializer, handler.response_serializer)
        wrapped = self._unary(method, handler.unary_unary or handler.stream_unary, admitted)
        factory = grpc.stream_unary_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        return factory(wrapped, deserializer, handler.response_serializer)

    def _unary(
        self, method: str, behaviour: Callable[..., Awaitable[Any]], admitted: _Admitted | None
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            observed = _Observed(self._telemetry, method, context)
            try:
                async with self._bounded(await self._begin(method, context)), _read(admitted, request) as received:
                    return await behaviour(garbage.checked(received, method), context)
            except BaseException as error:
                await observed.fail(self._ended(error), context)
            finally:
                observed.end()

        return call

    def _stream(
        self, method: str, behaviour: Callable[..., AsyncIterator[Any]], admitted: _Admitted | None
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            observed = _Observed(self._telemetry, method, context)
            rest = None if admitted is not None and admitted.reads_one else request
            messages: AsyncIterator[Any] | None = None
            try:
                async with self._bounded(await self._begin(method, context)), _read(admitted, request) as received:
                    messages = behaviour(garbage.checked(received, method), context)
                    async for message in messages:
                        yield message
                await _drain(rest)
            except BaseException as error:
                if isinstance(error, Exception):
                    await _drain(rest)
                await observed.fail(self._ended(error), context)
            finally:
                if isinstance(messages, AsyncGenerator):
                    await messages.aclose()  # releases the handler's resources now, not at garbage collection
                observed.end()

        return call

    def _refused(self, method: str, error: FactoryError, *, streaming: bool) -> grpc.RpcMethodHandler[Any, Any]:
        """Refuses a call without keeping its messages, as only a handler of a stream of requests can."""

        async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            observed = _Observed(self._telemetry, method, context)
            try:
                if streaming and self._draining < _MAX_DRAINING:  # others may lose the error
                    self._draining += 1
                    try:
                        await _drain(requests)
                    finally:
                        self._draining -= 1
                await observed.fail(error, context)
                yield
            finally:
                observed.end()

        return grpc.stream_stream_rpc_method_handler(call, None, None)

    def _reflection(
        self, method: str, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                if self._callers:
                    self._require_known_peer(context)
                async for message in behaviour(garbage.checked(requests, method), context):
                    yield message
            except FactoryError as error:
                await context.abort_with_status(errors.to_status(error))

        return call

    @contextlib.asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """Raises TimeoutError after `seconds`, or when `end_running` ends the call."""
        async with asyncio.timeout(seconds) as bound:
            self._running.add(bound)
            try:
                yield
            finally:
                self._running.discard(bound)

    def _ended(self, error: BaseException) -> BaseException:
        if isinstance(error, TimeoutError) and self._stopping:
            return errors.Unavailable("The service stops; another replica can answer.", retry_after_seconds=1.0)
        return error

    async def _begin(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> float:
        """Sets deadline and caller for the call's task; returns the seconds until the deadline."""
        self.last_call_at = asyncio.get_running_loop().time()
        remaining = context.time_remaining()
        seconds = self._default_timeout_seconds if remaining is None else min(remaining, 7 * 86400.0)
        channels.set_deadline(seconds)
        facts = rpcs.facts(method)
        if self._verifier is not None:
            if self._callers:
                self._require_known_peer(context)
            else:
                _require_trusted_transport(context)
            if facts.peer:
                return float(seconds)
            shown, request_id = _shown(context)
            token = shown.pop(passes.CONTEXT, None)
            if token is None:
                raise errors.Unauthenticated("The call carries no caller context; only the gateway's calls do.")
            caller = await self._verifier.verify(token, method)
            facts.require(caller.role, caller.permissions)
            identity.set_current(caller, passes.Received(shown), request_id)
            telemetry.describe({"genaifactory.tenant": caller.tenant, "genaifactory.request_id": request_id})
        return float(seconds)

    def _require_known_peer(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises PermissionDenied when the peer's certificate names none of the callers."""
        shown = context.auth_context().get("peer_uri", ())
        if self._callers.isdisjoint(shown):
            who = ", ".join(uri.decode("ascii", "replace") for uri in shown) or "A certificate without an identity"
            logger.warning("%s, at %s, is not among the callers and was refused", who, context.peer())
            raise errors.PermissionDenied(f"{who} may not call this service.")


@dataclass(frozen=True)
class _Admitted:
    """A call that a gate has authenticated."""

    gate: Gate
    owner: str
    reads_one: bool
    """Whether the call has one message, and not a stream of them."""


@contextlib.asynccontextmanager
async def _read(admitted: _Admitted | None, request: Any) -> AsyncIterator[Any]:
    """What the handler gets: the call's message or messages, within the gate's bounds. Raises Overloaded,
    DeadlineExceeded, InvalidArgument."""
    if admitted is None:
        yield request
        return
    with admitted.gate.called(admitted.owner):
        if admitted.reads_one:
            async with admitted.gate.reading(admitted.owner):
                request = await anext(aiter(request), None)
            if request is None:
                raise errors.InvalidArgument("The call ended before its message was complete.")
        yield request


class _Observed:
    """One call's span and metrics."""

    def __init__(self, service_telemetry: Telemetry, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._service = service_telemetry.service
        self._method = method.lstrip("/")
        self._started = time.perf_counter()
        self._code = "OK"
        telemetry.RPC_RUNNING.labels(self._service).inc()
        rpc_service, _, rpc_method = self._method.rpartition("/")
        parent, links = service_telemetry.caller(context.invocation_metadata() or ())
        self._span: Span = service_telemetry.tracer.start_span(
            self._method,
            context=parent,
            links=links,
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": rpc_service, "rpc.method": rpc_method},
        )
        # grpc.aio serves each call in a task of its own, so the context need not be reset.
        otel_context.attach(trace.set_span_in_context(self._span))

    async def fail(self, error: BaseException, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Aborts the call with the exception's status. Always raises."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._code = "CANCELLED"
            raise error
        if isinstance(error, grpc.aio.AbortError):
            self._code = context.code().name if context.code() else "UNKNOWN"
            raise error
        if isinstance(error, TimeoutError):
            error = errors.DeadlineExceeded("The call took longer than its deadline allows.")
        if not isinstance(error, FactoryError):
            logger.error("unexpected error in %s", self._method, exc_info=error)
            error = errors.Internal("The platform made a mistake; its log has the details under this request's id.")
        self._code = errors.TABLE[error.reason].grpc_status.name
        telemetry.mark_failed(self._span, error)
        await context.abort_with_status(errors.to_status(error))

    def end(self) -> None:
        """Closes the span and counts the call."""
        telemetry.RPC_RUNNING.labels(self._service).dec()
        telemetry.RPC_REQUESTS.labels(self._service, self._method, self._code).inc()
        telemetry.RPC_DURATION.labels(self._service, self._method).observe(time.perf_counter() - self._started)
        self._span.set_attribute("rpc.grpc.status_code", _number(grpc.StatusCode[self._code]))
        self._span.end()


async def _drain(requests: Any) -> None:
    """Reads what a client is still sending: grpc.aio loses the status of a call that ends during its peer's write."""
    if not isinstance(requests, AsyncIterator):
        return
    with contextlib.suppress(Exception):  # in any case the client gets the call's own error
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in requests:
                pass


def _shown(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[dict[str, str], str]:
    """The call's tokens by their keys, and the request's id, which may be empty."""
    found, request_id = {}, ""
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, bytes):
            continue
        if name.startswith(passes.CONTEXT):
            found[name] = value
        elif name == passes.REQUEST_ID:
            request_id = value[:_LONGEST_ID]
    return found, request_id


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])


def _require_trusted_transport(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if str(context.peer()).startswith("unix:"):
        return
    if b"ssl" not in context.auth_context().get("transport_security_type", ()):
        raise errors.Unauthenticated("The platform's services trust a call only over mTLS or a unix socket.")
