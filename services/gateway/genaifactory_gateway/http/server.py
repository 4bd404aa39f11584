"""Serves HTTP with uvicorn, inside the service's lifespan, with bounds for each connection."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import random
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NoReturn

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway.http import headers
from genaifactory_gateway.openai.responses import error_body
from genaifactory_gateway.settings import Http
from genaifactory_gateway.shares import Shares

ABORT = "genaifactory.abort"
"""The ASGI extension with a function that drops the connection."""

# The most that is read of a refused request's body before its connection is dropped: many clients send all of it
# before they read the response.
_MAX_DISCARDED_BYTES = 64 << 20
# ": " and the line's end.
_HEADER_FRAME_BYTES = 4
# Requests on one connection that wait for the first response; uvicorn has no bound.
_MAX_PIPELINED = 32

logger = logging.getLogger(__name__)

App = Callable[..., Awaitable[None]]


class HttpServer:
    """One listening socket and its connections."""

    def __init__(self, settings: Http) -> None:
        self._settings = settings
        self._server: _Server | None = None
        self._running: asyncio.Task[None] | None = None
        self.address = settings.address
        """HOST:PORT; with the real port once it listens."""

    @asynccontextmanager
    async def listening(self, app: App, *, drain_seconds: float) -> AsyncIterator[None]:
        """Serves `app` inside the block; leaving drains it. Raises OSError when the address cannot be bound."""
        linger_seconds = min(self._settings.linger_seconds, drain_seconds / 2)
        config = _Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # malformed requests are not logged
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(self._settings.keep_alive_seconds),
            timeout_graceful_shutdown=math.ceil(drain_seconds - linger_seconds),
            # A request's caller and deadline must not be those of the next one on the same connection.
            reset_contextvars=True,
        )
        config.http_settings = self._settings
        config.addresses = Shares(self._settings.max_connections)
        config.last_answers, config.unconnected = asyncio.Event(), asyncio.Event()
        config.unconnected.set()
        with _bound(self._settings.address) as listener:
            host, port = listener.getsockname()[:2]
            self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._server = _Server(config, linger_seconds)
            self._running = asyncio.create_task(self._server.serve(sockets=[listener]), name="gateway-http")
            listening = self._server.listening
            self._running.add_done_callback(lambda _: listening.set())
            await listening.wait()
            logger.info("gateway answers HTTP on %s", self.address)
            if self._running.done():
                self._running.result()
            try:
                yield
            finally:
                await self.drain()

    async def drain(self) -> None:
        """Lingers, stops accepting, and lets running answers finish, within a bound. A second call waits too."""
        if self._server is None or self._running is None:
            return
        self._server.should_exit = True
        self._server.stopping.set()
        await asyncio.shield(self._running)


class _Server(uvicorn.Server):
    config: _Config

    def __init__(self, config: _Config, linger_seconds: float) -> None:
        super().__init__(config)
        self._linger_seconds = linger_seconds
        self.listening = asyncio.Event()
        self.stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the runtime handles signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        # uvicorn's own loop wakes up ten times a second; its work, the date header, is due once.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._linger()
        await super().shutdown(sockets)
        # Requests that did not finish in time were cancelled, and still send an error to their clients.
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1.0)

    async def _linger(self) -> None:
        """Closes no connection on which a request may be in transit: clients are informed with the next response."""
        self.config.last_answers.set()
        for connection in self.server_state.connections:
            if isinstance(connection, _Connection):
                connection.answer_last()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._linger_seconds):
                await self.config.unconnected.wait()


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot listen on {address}: {error}") from None


def _address(host: str) -> str:
    """The part of a client's address that one client cannot change: IPv6 gives each 2^64 of them."""
    return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False)) if ":" in host else host


class _Config(uvicorn.Config):
    http_settings: Http
    addresses: Shares
    """Connections, by their clients' addresses."""
    last_answers: asyncio.Event
    """Set: every response is its connection's last."""
    unconnected: asyncio.Event
    """Set: there is no connection."""


class _Connection(HttpToolsProtocol):
    """uvicorn's connection, with bounds that uvicorn lacks: of headers, idle time and the number of connections."""

    config: _Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.config.unconnected.clear()
        self._loose_bytes = 0  # received outside of a request that is being served
        self._in_body = False
        self._headers_came = False
        self._header_bytes = 0
        self._refused = ""  # why a request was refused before the application saw it
        self._asks_for_upgrade = False
        self._cycles: deque[RequestResponseCycle] = deque()
        self._header_timeout: asyncio.TimerHandle | None = None
        # Spread, so that clients which connected together do not reconnect together.
        age = self.config.http_settings.max_connection_age_seconds * random.uniform(0.9, 1.1)  # noqa: S311
        self._old_at = self.loop.time() + age
        self._address = _address(self.client[0] if self.client else "")
        self._counted = self.config.addresses.take(self._address)
        if self._counted:
            self._wait_for_headers()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timeout()
        if self._counted:
            self.config.addresses.give_back(self._address)
        super().connection_lost(exc)
        if not self.connections:
            self.config.unconnected.set()
        # uvicorn notifies only the newest of pipelined requests, which is not the one being served.
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]  # ours, and no dict

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # one behind a body would replace a header that a proxy has checked
            super().on_header(name, value)
        self._count(len(name) + len(value) + _HEADER_FRAME_BYTES)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            self._refuse("The gateway is no proxy: it does not support the method CONNECT.")
        if self.parser.should_upgrade():
            if self._asks_for_upgrade:  # else a rule of the parser that is not known here would repeat it for ever
                self._refuse("The request asks for an upgrade in a form that the gateway does not support.")
            self._asks_for_upgrade = True
            return
        self._asks_for_upgrade = False
        if why := headers.fault(self.headers, self.parser.get_http_version()):
            self._refuse(why)
        self._in_body = self._headers_came = True
        super().on_headers_complete()
        if self.config.last_answers.is_set() or self.loop.time() > self._old_at:
            self.answer_last()
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(self.cycle)

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade:
            return
        self._in_body = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        in_body = self._in_body
        self._headers_came = False
        self._parse(data)
        if len(self.pipeline) > _MAX_PIPELINED:
            self.transport.abort()
        if self._headers_came or self.transport.is_closing():
            self._stop_header_timeout()
            return
        served = self.cycle is not None and not self.cycle.response_complete
        if in_body and served:
            return  # the application reads and bounds it
        # Incomplete headers, or the rest of a body whose request is answered: uvicorn reads them without a bound.
        self._loose_bytes += len(data)
        if self._loose_bytes > (_MAX_DISCARDED_BYTES if in_body else self.config.http_settings.max_header_bytes):
            if in_body:
                self.transport.abort()
            else:
                self.send_400_response(self._too_many_header_bytes())
        elif self._header_timeout is None and not served:
            self._wait_for_headers()

    def answer_last(self) -> None:
        """Closes the connection after the present response, which announces it."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Answers malformed HTTP with the platform's error body; during another response, drops the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = error_body(InvalidArgument(self._refused or msg))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _parse(self, data: bytes) -> None:
        """As uvicorn's `data_received`, without its upgrades: the parser would treat the body as another protocol, and
        what arrives later as the next request."""
        self._unset_keepalive_if_required()
        while data and len(self.pipeline) <= _MAX_PIPELINED:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def _head_without_upgrade(self) -> bytes:
        """The request line and the headers that were parsed, without the one that names protocols (RFC 9110, 7.8).

        llhttp asks for an upgrade only with it, whichever header has the token (Connection, Proxy-Connection)."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _count(self, size: int) -> None:
        # Called by the parser's callbacks, since a request may arrive in one piece.
        self._header_bytes += size
        if self._header_bytes > self.config.http_settings.max_header_bytes:
            self._refuse(self._too_many_header_bytes())

    def _too_many_header_bytes(self) -> str:
        return f"The request line and the headers may take at most {self.config.http_settings.max_header_bytes} bytes."

    def _refuse(self, why: str) -> NoReturn:
        """Ends the parsing of a request, from one of the parser's callbacks; uvicorn calls `send_400_response` then."""
        self._refused = why
        raise ValueError(why)

    def _wait_for_headers(self) -> None:
        self._header_timeout = self.loop.call_later(
            self.config.http_settings.header_timeout_seconds, self.transport.abort
        )

    def _stop_header_timeout(self) -> None:
        self._loose_bytes = 0
        if self._header_timeout is not None:
            self._header_timeout.cancel()
            self._header_timeout = None
