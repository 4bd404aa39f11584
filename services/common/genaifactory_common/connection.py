"""A channel that stays usable when its certificates change and its server restarts."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
import grpc.aio

from genaifactory_common import settings, tls
from genaifactory_common.errors import Unavailable, Unreachable

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_RETRY_AFTER_SECONDS = 5.0


class Connection(grpc.aio.Channel):
    """A sequence of gRPC's own channels, each with one set of certificates until its calls have ended."""

    def __init__(
        self,
        address: str,
        options: list[tuple[str, Any]],
        where: settings.Trust | None = None,
        *,
        patience_seconds: float = 0.0,
        api_key: str = "",
    ) -> None:
        """where: the certificates to follow; None: no TLS. patience_seconds: how long callers wait for a server.
        api_key: sent with each call, if not empty.

        Raises InvalidArgument when the certificates are invalid.
        """
        self.patience_seconds = patience_seconds
        self.credentials = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        """Metadata of each call that authenticates the caller."""
        self._address = address
        self._options = options
        self._files = tls.Files(where) if where is not None else None
        self._material: tls.Material | None = None
        self._looked_at = 0.0
        self._running = _Running(self._open())
        self._retiring: dict[asyncio.Task[None], _Running] = {}

    def current(self) -> _Running:
        """gRPC's channel for the next call; a new one when the certificates have changed."""
        if self._files is not None and time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            # Once a second stat of three files in memory, and after a change three small reads: less than a thread
            # would cost.
            if self._files.current() is not self._material:
                self._replace()
        return self._running

    async def reached(self, within_seconds: float) -> None:
        """Waits until a server accepts calls; with health checks, until one is SERVING.

        Raises Unreachable when none is in time.
        """
        running = self.current()
        if running.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(within_seconds):
                await self.channel_ready()
        except TimeoutError:
            if self._running is running and within_seconds >= self.patience_seconds:
                # gRPC looks up a missing name, and retries an address that did not answer, up to two minutes apart; a
                # new channel tries at once.
                self._replace()
            logger.warning("no server at %s accepted calls within %.1f s", self._address, within_seconds)
            raise Unreachable(
                "A service of the platform cannot be reached; try again.", retry_after_seconds=_RETRY_AFTER_SECONDS
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends every call, also those on channels that were replaced, after `grace` seconds."""
        self._looked_at = math.inf
        for task in self._retiring:
            task.cancel()
        last = [self._running, *self._retiring.values()]
        await asyncio.gather(*self._retiring, *(each.channel.close(grace) for each in last), return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the channel for the next call."""
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the channel for the next call; also returns when that is replaced."""
        await self.current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until a server accepts calls. Raises Unavailable when this is closed meanwhile."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise Unavailable("The platform stops.")
            await self._running.channel.wait_for_state_change(state)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """For stubs."""
        return Method(self, method, lambda channel: channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """For stubs."""
        return Method(self, method, lambda channel: channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """For stubs."""
        return Method(self, method, lambda channel: channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """For stubs."""
        return Method(self, method, lambda channel: channel.stream_stream(method, *args, **kwargs))

    def _open(self) -> grpc.aio.Channel:
        if self._files is None:
            return grpc.aio.insecure_channel(self._address, options=self._options)
        self._material = self._files.current()
        return grpc.aio.secure_channel(self._address, tls.channel_credentials(self._material), options=self._options)

    def _replace(self) -> None:
        old, self._running = self._running, _Running(self._open())
        task = asyncio.get_running_loop().create_task(old.retire(), name="channel-retiring")
        self._retiring[task] = old
        task.add_done_callback(self._retiring.pop)


class Method:
    """A method of a stub: each call uses the channel that is current then."""

    def __init__(
        self, connection: Connection, name: str, make: Callable[[grpc.aio.Channel], Callable[..., Any]]
    ) -> None:
        self.connection = connection
        self.name = name
        """"/package.Service/Method"."""
        self._make = make
        self._running: _Running | None = None
        self._call: Callable[..., Any] = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = self.connection.current()
        if running is not self._running:
            self._running, self._call = running, self._make(running.channel)
        if self.connection.credentials:
            kwargs["metadata"] = (*(kwargs.get("metadata") or ()), *self.connection.credentials)
        return running.begun(self._call(*args, **kwargs))


class _Running:
    """One of gRPC's channels and the calls that run on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begun(self, call: Any) -> Any:
        self._calls += 1
        self._idle.clear()
        call.add_done_callback(self._ended)
        return call

    async def retire(self) -> None:
        """Closes the channel once its last call has ended; it must get no new ones."""
        await self._idle.wait()
        await self.channel.close()

    def _ended(self, _: grpc.aio.Call) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._idle.set()
