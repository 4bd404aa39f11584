"""Whether the services behind the gateway can answer, asked at most once a second however often it is wanted."""

from __future__ import annotations

import asyncio
import time

from grpc_health.v1 import health_pb2, health_pb2_grpc

from genaifactory_common import channels
from genaifactory_common.errors import FactoryError
from genaifactory_gateway.upstream import Channels

_FRESH_SECONDS = 1.0


class Health:
    """The last look at the upstreams. Without the orchestrator nothing is answered; without monitor answers go on.

    Once it has found the orchestrator serving it stays ready: requests wait for an orchestrator that restarts, and are
    told when they waited too long, where a gateway that is out of its Service would have connections refused.
    """

    def __init__(self, to: Channels, *, timeout_seconds: float) -> None:
        self._stubs = {
            "orchestrator": health_pb2_grpc.HealthStub(to.orchestrator),
            "monitor": health_pb2_grpc.HealthStub(to.monitor),
        }
        self._timeout_seconds = timeout_seconds
        self._one_look = asyncio.Lock()
        self._looked_at: float | None = None
        self._states: dict[str, str] = {}
        self.ready = False
        """Whether the orchestrator was ever found serving."""

    async def look(self) -> dict[str, str]:
        """The state of each upstream: "serving", "not serving" or "unreachable"; at most a second old."""
        async with self._one_look:
            if self._looked_at is None or time.monotonic() - self._looked_at > _FRESH_SECONDS:
                found = await asyncio.gather(*(self._state(stub) for stub in self._stubs.values()))
                self._states = dict(zip(self._stubs, found, strict=True))
                self._looked_at = time.monotonic()
                self.ready = self.ready or self._states["orchestrator"] == "serving"
            return self._states

    async def watch(self) -> None:
        """Keeps `ready` fresh, forever."""
        while True:
            await self.look()
            await asyncio.sleep(_FRESH_SECONDS)

    async def _state(self, stub: health_pb2_grpc.HealthStub) -> str:
        try:
            response = await channels.unary(
                stub.Check,  # type: ignore[attr-defined]  # the package's types leave it out
                health_pb2.HealthCheckRequest(),
                timeout_seconds=self._timeout_seconds,
                patient=False,
            )
        except FactoryError:
            return "unreachable"
        serving = response.status == health_pb2.HealthCheckResponse.SERVING
        return "serving" if serving else "not serving"
