"""Whether the services behind the gateway can answer, asked at most once a second however often it is wanted."""

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
    """The last look at the upstreams. Without the orchestrator nothing is answered; without monitor answers go on.

    Once it has found the orchestrator serving it stays ready: requests wait for an orchestrator that restarts, and are
    told when they waited too long, where a gateway that is out of its Service would have connections refused. For the
    same reason an orchestrator whose disk is full does not make it less ready: it goes on to say so to every client,
    and to answer what needs no disk. `can_answer` is False then, for whoever wants to know whether answers are given.
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
        """The state of each upstream, at most a second old.

        "serving", "serving, low on space", "out of space", "not serving" or "unreachable".
        """
        async with self._one_look:
            if self._looked_at is None or time.monotonic() - self._looked_at > _FRESH_SECONDS:
                found = await asyncio.gather(*(self._state(stub) for stub in self._stubs.values()))
                self._states = dict(zip(self._stubs, found, strict=True))
                self._looked_at = time.monotonic()
                self.ready = self.ready or self._states["orchestrator"] in _SERVES
            return self._states

    @property
    def can_answer(self) -> bool:
        """Whether it is ready, and the orchestrator has room for the record of another answer."""
        return self.ready and self._states.get("orchestrator") != OUT_OF_SPACE

    async def watch(self) -> None:
        """Keeps `ready` fresh, forever."""
        while True:
            await self.look()
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
        """None: it cannot be asked."""
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
