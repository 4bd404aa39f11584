"""One HTTP request and its response: reads the body within bounds, bounds slow readers, detects a disconnect."""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from genaifactory_common import errors
from genaifactory_common.errors import Cancelled, DeadlineExceeded, FactoryError, InvalidArgument, TooLarge
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.http.server import ABORT
from genaifactory_gateway.openai import fields
from genaifactory_gateway.openai.responses import error_body, error_event
from genaifactory_gateway.settings import Http

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # else nginx buffers the stream
]
_LINES: Headers = [(b"content-type", b"application/jsonl; charset=utf-8"), (b"cache-control", b"no-store")]
_STRICT = b"x-genaifactory-strict"
_ARM = b"x-genaifactory-arm"
_IGNORED = b"x-genaifactory-ignored"
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Exchange:
    """One request and its response."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, settings: Http) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        # Never the client's: it is the key of the record, and a client that could choose it could hide its usage.
        self.request_id = f"req-{uuid.uuid4().hex}"
        self.status = 0
        """The HTTP status sent; 0 before."""
        self.error: FactoryError | None = None
        """The error of the request, also after the status was sent."""
        self.tenant = self.key_id = ""
        self.named: Callable[[str | None], str | None] = lambda field: field
        """Converts an error's field from the contracts' name to the client's."""
        self.cors: Headers = []
        """CORS headers of the response."""
        self.ignored: Sequence[str] = ()
        """Paths of the body's fields without effect."""
        self.notes: Headers = []
        """Further headers about the answer."""
        self.hung_up = False
        self._receive = receive
        self._send = send
        self._settings = settings
        self._abort: Callable[[], None] = scope.get("extensions", {}).get(ABORT, lambda: None)
        self._entry: Entry | None = None
        self._complete = self._events = False

    @property
    def authorization(self) -> str | None:
        """The header's value."""
        value = self.headers.get(b"authorization")
        return None if value is None else value.decode("latin-1")

    @property
    def content_type(self) -> str:
        """The media type of the body, without parameters; empty when there is none."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def content_length(self) -> int | None:
        """Length of the body in bytes; None when the header is missing."""
        length = self.headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else None

    @property
    def client_id(self) -> str:
        """The client's own request id, if it is valid; empty when there is none."""
        value = self.headers.get(b"x-request-id") or self.headers.get(b"x-client-request-id") or b""
        return value.decode() if _CLIENT_ID.fullmatch(value) else ""

    @property
    def arm(self) -> str:
        """The arm of the route's split that a tester chose; empty: none."""
        return self.headers.get(_ARM, b"").decode("latin-1")

    @property
    def strict(self) -> bool:
        """Whether fields without effect are refused. Raises InvalidArgument."""
        value = self.headers.get(_STRICT, b"false").strip().lower()
        if value not in (b"true", b"false"):
            raise InvalidArgument(f"The header {_STRICT.decode()} must be true or false.")
        return value == b"true"

    def entered(self, entry: Entry) -> None:
        """Sets the admitted caller, for the log and the limits in the response headers."""
        self._entry = entry
        self.tenant = entry.holder.tenant.name
        self.key_id = entry.holder.key.id

    async def body(self) -> bytes:
        """The JSON body of an admitted request. Raises InvalidArgument, TooLarge, Overloaded, DeadlineExceeded;
        Cancelled if the client disconnects."""
        assert self._entry is not None
        if self.content_type != "application/json":
            raise InvalidArgument("The header Content-Type must be application/json.")
        self.require_plain()
        if (self.content_length or 0) > self._settings.max_body_bytes:
            raise self._too_large()
        if self.content_length is not None:
            self._entry.hold(self.content_length)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_seconds):
                while True:
                    piece, more = await self._piece()
                    size += len(piece)
                    if size > self._settings.max_body_bytes:
                        raise self._too_large()
                    if self.content_length is None:
                        self._entry.hold(len(piece))
                    pieces.append(piece)
                    if not more:
                        return b"".join(pieces)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The body did not arrive within {self._settings.body_timeout_seconds:g} s of the headers.",
                reason=errors.Reason.REQUEST_TIMEOUT,
            ) from None

    def require_plain(self) -> None:
        """Raises InvalidArgument for a compressed body."""
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise InvalidArgument("The body must not be compressed: leave out the header Content-Encoding.")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in pieces, of any type and size; the next one is read when the consumer asks for it.

        Raises Cancelled if the client disconnects.
        """
        more = True
        while more:
            piece, more = await self._piece()
            if piece:
                yield piece

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancels the block when the client disconnects, and then raises Cancelled. The body must have been read."""
        work = asyncio.current_task()
        assert work is not None

        async def watch() -> None:
            while (await self._next())["type"] != "http.disconnect":
                pass
            if not self._complete:
                self.hung_up = True
                work.cancel()

        watcher = asyncio.create_task(watch(), name="gateway-hangup")
        try:
            yield
        except asyncio.CancelledError:
            if self.hung_up and work.uncancel() == 0:
                raise _gone() from None
            raise
        finally:
            watcher.cancel()
            await asyncio.wait((watcher,))

    async def respond(self, body: bytes, status: int = 200, *, headers: Headers | None = None) -> None:
        """Sends the whole response, JSON unless `headers` have another type."""
        all_headers = [*(headers or [])]
        if status != 204:  # a response without a body
            if not any(name == b"content-type" for name, _ in all_headers):
                all_headers.append(_JSON)
            all_headers.append((b"content-length", b"%d" % len(body)))
        await self._start(status, all_headers)
        await self.write(body, last=True)

    async def fail(self, error: FactoryError) -> None:
        """Sends the error: as the response or, if that has begun, as the last event of the stream.

        A body that is no event stream is cut off, so that no client treats it as complete.
        """
        error.field = self.named(error.field)
        self.error = error
        if self._complete or self.hung_up:
            return
        if self.status and not self._events:
            self.hung_up = True
            self._abort()
            return
        if self.status:
            await self.write(error_event(error), last=True)
            return
        own: Headers = []
        if error.reason is errors.Reason.UNAUTHENTICATED:
            own.append((b"www-authenticate", b"Bearer"))
        if error.reason is errors.Reason.REQUEST_TIMEOUT:
            own.append((b"connection", b"close"))  # the rest of the body may still arrive
        if error.retry_after_seconds is not None:
            own.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_seconds))))
        elif error.reason is errors.Reason.RATE_LIMITED:
            own.append((b"x-should-retry", b"false"))  # else OpenAI's clients retry in vain
        await self.respond(error_body(error), errors.http_status(error), headers=own)

    async def start_stream(self) -> None:
        """Sends the status of an event stream, together with its first bytes."""
        self._events = True
        await self._start(200, _STREAM)

    async def start_lines(self) -> None:
        """Sends the status of a body of JSON lines, of any length."""
        await self._start(200, _LINES)

    async def write(self, piece: bytes, *, last: bool = False) -> None:
        """Sends the next bytes; waits for a slow reader. Raises Cancelled when it is too slow."""
        self._complete = last
        await self._send_in_time({"type": "http.response.body", "body": piece, "more_body": not last})

    async def _piece(self) -> tuple[bytes, bool]:
        """The next bytes of the body, and whether more follow. Raises Cancelled if the client disconnects."""
        message = await self._next()
        if message["type"] == "http.disconnect":
            self.hung_up = True
            raise _gone()
        return message.get("body", b""), bool(message.get("more_body"))

    async def _next(self) -> MutableMapping[str, Any]:
        try:
            return await self._receive()
        except RuntimeError:  # of uvloop, when the connection was closed in this turn of the loop
            return {"type": "http.disconnect"}

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        own = [(b"x-request-id", self.request_id.encode()), *self.cors]
        if client_id := self.client_id:
            own.append((b"x-client-request-id", client_id.encode()))
        if self.ignored:
            own.append((_IGNORED, fields.header(self.ignored)))
        if self._entry is not None:
            for kind, state in (await self._entry.limits()).items():
                name = kind.encode()
                own += [
                    (b"x-ratelimit-limit-" + name, b"%d" % state.limit),
                    (b"x-ratelimit-remaining-" + name, b"%d" % state.remaining),
                    (b"x-ratelimit-reset-" + name, _duration(state.reset_seconds)),
                ]
        own += self.notes
        await self._send_in_time({"type": "http.response.start", "status": status, "headers": [*own, *headers]})

    async def _send_in_time(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._settings.write_timeout_seconds):
                await self._send(message)
        except TimeoutError:
            # Data is left in the socket's buffer: a graceful close would wait for this reader.
            self.hung_up = True
            self._abort()
            await asyncio.sleep(0)  # lets the server process the close, so that it does not report a missing response
            raise _gone() from None

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than the {self._settings.max_body_bytes} bytes that the gateway accepts.")


def _gone() -> Cancelled:
    return Cancelled("The client disconnected before the answer was complete.")


def _duration(seconds: float) -> bytes:
    """In OpenAI's format: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    minutes, rest = divmod(round(seconds), 60)
    return b"%dm%ds" % (minutes, rest)
