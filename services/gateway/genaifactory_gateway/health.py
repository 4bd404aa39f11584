"""The health of the services behind the gateway, checked at most once a second."""

from __future__ import annotations

import asyncio
import time

from grpc_health.v1 import health_pb2, health_pb2_grpc

from genaifactory_common import channels, runtime
from genaifactory_common.errors import FactoryError
from genaifactory_gateway.upstream import Channels

SERVING, LOW_ON_SPACE, OUT_OF_SPACE = "serving", "serving, low on space", "out of space"
NOT_SERVING, UNREACHABLE = "not serving", "unreachable"

_SERVES = (SERVING, LOW_ON_SPACE, OUT_OF_SPACE)
_FRESH_SECONDS = 1.0


class Health:
    """The last check of the upstreams. Answers need the orchestrator; they do not need monitor.

    Once the orchestrator was serving the gateway stays ready: requests wait for an orchestrator that restarts, up to a
    bound, whereas clients of a gateway that is removed from its Service have their connections refused. For the same
    reason it stays ready when the orchestrator's disk is full: clients get that error, and requests that need no disk
    are served. `can_answer` is False then.
    """

    def __init__(self, to: Channels, *, timeout_seconds: float) -> None:
        self._stubs = {
            "orchestrator": health_pb2_grpc.HealthStub(to.orchestrator),
            "monitor": health_pb2_grpc.HealthStub(to.monitor),
        }
        self._timeout_seconds = timeout_seconds
        self._checking = asyncio.Lock()
        self._checked_at: float | None = None
        self._states: dict[str, str] = {}
        self.ready = False
        """Whether the orchestrator was ever serving."""

    async def check(self) -> dict[str, str]:
        """The state of each upstream, at most a second old.

        "serving", "serving, low on space", "out of space", "not serving" or "unreachable".
        """
        async with self._checking:
            if self._checked_at is None or time.monotonic() - self._checked_at > _FRESH_SECONDS:
                found = await asyncio.gather(*(self._state(stub) for stub in self._stubs.values()))
                self._states = dict(zip(self._stubs, found, strict=True))
                self._checked_at = time.monotonic()
                self.ready = self.ready or self._states["orchestrator"] in _SERVES
            return self._states

    @property
    def can_answer(self) -> bool:
        """Whether it is ready, and the orchestrator has space for the record of another answer."""
        return self.ready and self._states.get("orchestrator") != OUT_OF_SPACE

    async def watch(self) -> None:
        """Checks every second, forever."""
        while True:
            await self.check()
            await asyncio.sleep(_FRESH_SECONDS)

    async def _state(self, stub: health_pb2_grpc.HealthStub) -> str:
        serves = await self._serves(stub, "")
        if serves is None:
            return UNREACHABLE
        if not serves:
            return NOT_SERVING
        if await self._serves(stub, runtime.SPACE_LOW) is not False:
            return SERVING
        return OUT_OF_SPACE if await self._serves(stub, runtime.SPACE_FULL) is False else LOW_ON_SPACE

    async def _serves(self, stub: health_pb2_grpc.HealthStub, service: str) -> bool | None:
        """Whether the service is serving; None: it is unreachable."""
        try:
            response = await channels.unary(
                stub.Check,  # type: ignore[attr-defined]  # the package's types leave it out
                health_pb2.HealthCheckRequest(service=service),
                timeout_seconds=self._timeout_seconds,
                patient=False,
            )
        except FactoryError:
            return None
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
