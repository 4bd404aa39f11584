"""One HTTP request and its answer: reads the body within bounds, writes to readers however slow, notices a hang-up."""

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
    (b"x-accel-buffering", b"no"),  # nginx would gather the stream
]
_LINES: Headers = [(b"content-type", b"application/jsonl; charset=utf-8"), (b"cache-control", b"no-store")]
_STRICT = b"x-genaifactory-strict"
_IGNORED = b"x-genaifactory-ignored"
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, settings: Http) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        # Ours, always: it names the record of the request, and a client that could choose it could hide its usage.
        self.request_id = f"req-{uuid.uuid4().hex}"
        self.status = 0
        """The HTTP status sent; 0 while none is."""
        self.error: FactoryError | None = None
        """Why it failed, also after the status was sent."""
        self.tenant = self.key_id = ""
        self.named: Callable[[str | None], str | None] = lambda field: field
        """How the client calls the field that an error names; the services behind us know their contracts' names."""
        self.cors: Headers = []
        """What the answer says to the browser of a page of another origin."""
        self.ignored: Sequence[str] = ()
        """Paths of the body's fields that have no effect."""
        self.notes: Headers = []
        """About the answer; sent with its status."""
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
        """Of the body, in bytes; None when the client does not say."""
        length = self.headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else None

    @property
    def client_id(self) -> str:
        """The request id that the client chose for itself, if it is sane; empty when there is none."""
        value = self.headers.get(b"x-request-id") or self.headers.get(b"x-client-request-id") or b""
        return value.decode() if _CLIENT_ID.fullmatch(value) else ""

    @property
    def strict(self) -> bool:
        """Whether the client wants fields without effect refused. Raises InvalidArgument."""
        value = self.headers.get(_STRICT, b"false").strip().lower()
        if value not in (b"true", b"false"):
            raise InvalidArgument(f"The header {_STRICT.decode()} must be true or false.")
        return value == b"true"

    def entered(self, entry: Entry) -> None:
        """Notes who is let in: for the log, and for the limits in the headers of the answer."""
        self._entry = entry
        self.tenant = entry.holder.tenant.name
        self.key_id = entry.holder.key.id

    async def body(self) -> bytes:
        """The JSON body. Raises InvalidArgument, TooLarge, DeadlineExceeded; Cancelled if the client goes."""
        if self.content_type != "application/json":
            raise InvalidArgument("The header Content-Type must be application/json.")
        self.require_plain()
        if (self.content_length or 0) > self._settings.max_body_bytes:
            raise self._too_large()
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_seconds):
                while True:
                    piece, more = await self._piece()
                    size += len(piece)
                    if size > self._settings.max_body_bytes:
                        raise self._too_large()
                    pieces.append(piece)
                    if not more:
                        return b"".join(pieces)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The body did not arrive within {self._settings.body_timeout_seconds:g} s of the headers.",
                reason=errors.Reason.REQUEST_TIMEOUT,
            ) from None

    def require_plain(self) -> None:
        """Raises InvalidArgument for a body that is compressed."""
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise InvalidArgument("The body must not be compressed: leave out the header Content-Encoding.")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, of any type and size: no more is read while a piece is in use.

        Raises Cancelled if the client goes.
        """
        more = True
        while more:
            piece, more = await self._piece()
            if piece:
                yield piece

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancels the block when the client hangs up, and then raises Cancelled. The body must have been read."""
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
        """Sends the whole answer, JSON unless `headers` name another type."""
        all_headers = [*(headers or [])]
        if status != 204:  # which has no body, and so no headers about it
            if not any(name == b"content-type" for name, _ in all_headers):
                all_headers.append(_JSON)
            all_headers.append((b"content-length", b"%d" % len(body)))
        await self._start(status, all_headers)
        await self.write(body, last=True)

    async def fail(self, error: FactoryError) -> None:
        """Sends the error: as the answer or, where that has begun, as the last event of the stream.

        A body that is no event stream is cut off, so that no client takes it for the whole.
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
            own.append((b"connection", b"close"))  # the rest of the body may come when it is too late
        if error.retry_after_seconds is not None:
            own.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_seconds))))
        elif error.reason is errors.Reason.RATE_LIMITED:
            own.append((b"x-should-retry", b"false"))  # OpenAI's clients would try again in vain
        await self.respond(error_body(error), errors.http_status(error), headers=own)

    async def start_stream(self) -> None:
        """Sends the status of an event stream, which goes out with the first bytes."""
        self._events = True
        await self._start(200, _STREAM)

    async def start_lines(self) -> None:
        """Sends the status of a body of JSON lines, of any length."""
        await self._start(200, _LINES)

    async def write(self, piece: bytes, *, last: bool = False) -> None:
        """Sends the next bytes of the answer; waits for a slow reader. Raises Cancelled when it is too slow."""
        self._complete = last
        await self._send_in_time({"type": "http.response.body", "body": piece, "more_body": not last})

    async def _piece(self) -> tuple[bytes, bool]:
        """The next bytes of the body, and whether more follow. Raises Cancelled if the client goes."""
        message = await self._next()
        if message["type"] == "http.disconnect":
            self.hung_up = True
            raise _gone()
        return message.get("body", b""), bool(message.get("more_body"))

    async def _next(self) -> MutableMapping[str, Any]:
        try:
            return await self._receive()
        except RuntimeError:  # uvloop's, when the connection was closed in this turn of the loop
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
            # What was written still waits in the socket's buffer: closing in good order would wait for this reader.
            self.hung_up = True
            self._abort()
            await asyncio.sleep(0)  # the server learns of it, and does not miss the rest of the answer
            raise _gone() from None

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than the {self._settings.max_body_bytes} bytes that the gateway takes.")


def _gone() -> Cancelled:
    return Cancelled("The client went away before the answer was complete.")


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    minutes, rest = divmod(round(seconds), 60)
    return b"%dm%ds" % (minutes, rest)
