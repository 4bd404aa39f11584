"""What a running platform stores under names of factory.yaml, and whether a changed document hides any of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels, settings, specs, stored
from genaifactory_common.errors import FactoryError
from genaifactory_common.stored import Kind, Stored
from genaifactory_local.endpoints import Service

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0
_FIRST_SECOND = 946_684_800  # of 2000, the earliest that the monitor takes


@dataclass(frozen=True)
class Inventory:
    """What is stored, as far as the services answered."""

    stored: tuple[Stored, ...]
    unknown: tuple[str, ...] = ()
    """What could not be counted, each with the reason."""


async def take(
    address: Callable[[Service], str], sign_in: Callable[[], None], tls: settings.Tls | None = None
) -> Inventory:
    """Asks the services that store. sign_in: makes a task's calls come from somebody with the permission 'operate'."""

    async def ask(
        service: Service, kind: Kind, count: Callable[[grpc.aio.Channel], Awaitable[list[Stored]]]
    ) -> Inventory:
        try:
            sign_in()
            async with channels.connect(address(service), tls, patience_seconds=_PATIENCE_SECONDS) as channel:
                return Inventory(tuple(await count(channel)))
        except FactoryError as error:
            return Inventory((), (f"{kind} ({error.message})",))

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ask("retriever", "documents", _documents)),
            group.create_task(ask("orchestrator", "conversations", _conversations)),
            group.create_task(ask("monitor", "requests on record", _requests)),
        ]
    found = [task.result() for task in tasks]
    return Inventory(
        tuple(each for part in found for each in part.stored), tuple(why for part in found for why in part.unknown)
    )


def reviewer(look: Callable[[], Awaitable[Inventory]]) -> Callable[[specs.Factory, specs.Factory], Awaitable[None]]:
    """For `specs.Source.review`: refuses a document that lacks a name under which something is stored.

    What cannot be counted is no reason to refuse, or no document could mend what is broken; then a line warns of it.
    """

    async def review(before: specs.Factory, after: specs.Factory) -> None:
        if _names(before) <= _names(after):
            return
        inventory = await look()
        if found := [each for each in stored.newly_hidden(before, after, inventory.stored) if each.renamed]:
            raise specs.InvalidConfiguration([str(each) for each in found], "factory.yaml")
        for why in inventory.unknown:
            logger.warning("names are gone from factory.yaml; whether that hides any %s is not known", why)

    return review


def _names(factory: specs.Factory) -> set[tuple[str, str]]:
    return {("tenant", each.name) for each in factory.tenants} | {
        ("knowledge base", each.name) for each in factory.knowledge_bases
    }


async def _documents(channel: grpc.aio.Channel) -> list[Stored]:
    stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
    request = retriever_pb2.CountDocumentsRequest()
    response = await channels.unary(stub.CountDocuments, request, timeout_seconds=_TIMEOUT_SECONDS)
    return [Stored(each.tenant, "documents", each.documents, each.knowledge_base) for each in response.counts]


async def _conversations(channel: grpc.aio.Channel) -> list[Stored]:
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
    request = orchestrator_pb2.CountConversationsRequest()
    response = await channels.unary(stub.CountConversations, request, timeout_seconds=_TIMEOUT_SECONDS)
    return [Stored(each.tenant, "conversations", each.conversations) for each in response.counts]


async def _requests(channel: grpc.aio.Channel) -> list[Stored]:
    stub = monitor_pb2_grpc.MonitorServiceStub(channel)
    request = monitor_pb2.GetUsageRequest(tenant="*", start_time=Timestamp(seconds=_FIRST_SECOND))
    response = await channels.unary(stub.GetUsage, request, timeout_seconds=_TIMEOUT_SECONDS)
    of_tenant: dict[str, int] = {}
    for row in response.rows:
        of_tenant[row.tenant] = of_tenant.get(row.tenant, 0) + row.requests
    return [Stored(tenant, "requests on record", count) for tenant, count in sorted(of_tenant.items())]
