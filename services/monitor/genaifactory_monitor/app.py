"""The wiring of the monitor: database, servicer, and the tasks that run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from genaifactory.monitor.v1 import batches_pb2, batches_pb2_grpc, monitor_pb2, monitor_pb2_grpc
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.space import Space
from genaifactory_common.telemetry import Telemetry
from genaifactory_monitor import drift_reports, former, retention, store
from genaifactory_monitor.batches.servicer import BatchServicer
from genaifactory_monitor.batches.upkeep import Upkeep
from genaifactory_monitor.database import Database
from genaifactory_monitor.servicer import MonitorServicer
from genaifactory_monitor.settings import Settings

_SERVICES = (
    monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"].full_name,
    batches_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name,
)
_PING_INTERVAL_SECONDS = 5.0


def create_app(settings: Settings, telemetry: Telemetry) -> ServiceApp:
    """The monitor, ready to run. Raises InvalidArgument for settings that cannot work."""
    database = Database(settings)
    # PostgreSQL has its own disks, which its administrator watches.
    space = None if database.postgresql else Space("monitor", settings.data_dir, settings.space)
    servicer = MonitorServicer(database, settings, space, telemetry)
    upkeep = Upkeep(database, settings.batches)
    of_batches = BatchServicer(database, settings.batches, space, upkeep)
    health = _Health()

    def register(server: grpc.aio.Server) -> None:
        monitor_pb2_grpc.add_MonitorServiceServicer_to_server(servicer, server)
        batches_pb2_grpc.add_BatchServiceServicer_to_server(of_batches, server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await database.open_when_reachable()
        try:
            health.reachable = True
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(health.watch(database), name="monitor-ping"),
                    group.create_task(retention.sweep_forever(database, settings.retention), name="monitor-retention"),
                    group.create_task(former.count_forever(database), name="monitor-former"),
                    group.create_task(upkeep.forever(), name="monitor-batches"),
                    group.create_task(
                        drift_reports.show_forever(database, settings.max_metric_series), name="monitor-drift"
                    ),
                ]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            await database.close()

    return ServiceApp(
        name="monitor",
        telemetry=telemetry,
        service_names=_SERVICES,
        register=register,
        lifespan=lifespan,
        ready=lambda: health.reachable,
        serves_while_opening=True,  # NOT_SERVING while PostgreSQL is away; a process that ended would be restarted late
        verifier=settings.verifier(),
        space=space,
    )


class _Health:
    """Whether the database answers."""

    def __init__(self) -> None:
        self.reachable = False

    async def watch(self, database: Database) -> None:
        """Checks every few seconds, forever."""
        while True:
            await asyncio.sleep(_PING_INTERVAL_SECONDS)
            try:
                await store.ping(database)
            except FactoryError:
                self.reachable = False
            else:
                self.reachable = True
