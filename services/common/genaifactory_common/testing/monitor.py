"""A fake monitor that stores the interactions it receives, or refuses them.

fake = FakeMonitor()
async with served(fake.app(VERIFIER)) as channel: ...
(interaction,) = fake.interactions.values()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import tokens
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer):
    """Stores each request's first interaction."""

    def __init__(self) -> None:
        self.interactions: dict[str, monitor_pb2.Interaction] = {}
        self.refused: Callable[[monitor_pb2.Interaction], bool] = lambda interaction: False
        """Whether an interaction is refused as invalid."""
        self.error: FactoryError | None = None
        """Raised by every call."""
        self.calls = 0
        self._news = asyncio.Event()

    async def RecordInteractions(
        self, request: monitor_pb2.RecordInteractionsRequest, context: Any
    ) -> monitor_pb2.RecordInteractionsResponse:
        """Stores them, unless one is refused: then none."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        for i, interaction in enumerate(request.interactions):
            if self.refused(interaction):
                raise InvalidArgument("is refused by the test", field=f"interactions[{i}]")
        known = 0
        for interaction in request.interactions:
            known += interaction.request_id in self.interactions
            self.interactions.setdefault(interaction.request_id, interaction)
        self._news.set()
        return monitor_pb2.RecordInteractionsResponse(stored=len(request.interactions) - known, known=known)

    async def arrived(self, count: int) -> None:
        """Waits until it has this many interactions."""
        while len(self.interactions) < count:
            self._news.clear()
            await self._news.wait()

    def app(self, verifier: tokens.Verifier) -> ServiceApp:
        """For `served`."""
        return ServiceApp(
            name="monitor",
            telemetry=Telemetry("monitor"),
            service_names=("genaifactory.monitor.v1.MonitorService",),
            register=lambda server: monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self, server),
            lifespan=_nothing,
            verifier=verifier,
        )


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
