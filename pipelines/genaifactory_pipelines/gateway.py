"""The platform as the pipelines see it: its gateway, whose restarts and refusals they wait out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import DeadlineExceeded, FactoryError, Overloaded, RateLimited, Unavailable
from genaifactory_pipelines.anonymiser import Direction

PATIENCE_SECONDS = 600.0
"""How long a step waits for a platform that is away or refuses, since it last answered."""

_EXPORT_TIMEOUT_SECONDS = 3600.0
_CHECK_TIMEOUT_SECONDS = 120.0
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=15.0)
_DIRECTIONS: dict[Direction, types_pb2.Direction.ValueType] = {
    "input": types_pb2.DIRECTION_INPUT,
    "output": types_pb2.DIRECTION_OUTPUT,
}
_PASSING = (Unavailable, RateLimited, Overloaded, DeadlineExceeded)


class Gateway:
    """Calls of the gateway that are repeated while the platform is away."""

    def __init__(self, channel: grpc.aio.Channel, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        self._patience_seconds = patience_seconds

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """Interactions of the key's tenant, with their feedback, as JSON lines, oldest first. Raises FactoryError.

        It is not repeated by itself: only the reader knows from where to go on.
        """
        request = gateway_pb2.ExportInteractionsRequest(filter=wanted)
        call = channels.stream(self._stub.ExportInteractions, request, timeout_seconds=_EXPORT_TIMEOUT_SECONDS)
        async with aclosing(call) as pieces:
            async for piece in pieces:
                yield piece

    async def check(self, texts: Sequence[str], policy: str, direction: Direction) -> list[str | None]:
        """See anonymiser.Checker; waits while the platform is away."""
        request = gateway_pb2.CheckTextsRequest(texts=texts, policy=policy, direction=_DIRECTIONS[direction])
        patience = self.patience()
        while True:
            try:
                found = await channels.unary(self._stub.CheckTexts, request, timeout_seconds=_CHECK_TIMEOUT_SECONDS)
            except FactoryError as error:
                await patience.wait(error)
            else:
                return [None if each.verdict.action == types_pb2.ACTION_BLOCK else each.text for each in found.texts]

    def patience(self) -> Patience:
        """For one piece of work."""
        return Patience(self._patience_seconds)


class Patience:
    """Waits between attempts, until there was no success for too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._since = time.monotonic()

    def succeeded(self) -> None:
        """The platform has answered."""
        self._failures, self._since = 0, time.monotonic()

    async def wait(self, error: FactoryError) -> None:
        """Waits after a failure. Raises the error again when it does not pass, or has not for too long."""
        self._failures += 1
        pause = max(error.retry_after_seconds or 0.0, _BACKOFF.seconds(self._failures))
        if not isinstance(error, _PASSING) or time.monotonic() + pause - self._since > self._seconds:
            raise error
        await asyncio.sleep(pause)
