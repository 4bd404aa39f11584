"""What a running platform stores under names of factory.yaml, and whether a changed document hides any of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common import limited, specs, stored
from genaifactory_common.errors import FactoryError
from genaifactory_common.stored import Kind, Stored

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
"""How long a check of a document waits for a gateway that restarts."""


@dataclass(frozen=True)
class Inventory:
    """What is stored, as far as the services answered."""

    stored: tuple[Stored, ...]
    unknown: tuple[str, ...] = ()
    """What could not be counted, each with the reason."""


async def take(channel: grpc.aio.Channel) -> Inventory:
    """Counts through the gateway on `channel`, whose key needs the permissions 'operate' and 'usage'."""
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)

    async def ask(
        kind: Kind, count: Callable[[gateway_pb2_grpc.GatewayServiceAsyncStub], Awaitable[list[Stored]]]
    ) -> Inventory:
        try:
            return Inventory(tuple(await count(stub)))
        except FactoryError as error:
            return Inventory((), (f"{kind} ({error.message})",))

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ask("documents", _documents)),
            group.create_task(ask("conversations", _conversations)),
            group.create_task(ask("requests on record", _requests)),
        ]
    found = [task.result() for task in tasks]
    return Inventory(
        tuple(each for part in found for each in part.stored), tuple(why for part in found for why in part.unknown)
    )


def reviewer(look: Callable[[], Awaitable[Inventory]]) -> Callable[[specs.Factory, specs.Factory], Awaitable[None]]:
    """For `specs.Source.review`: refuses a document that lacks a name under which something is stored.

    What cannot be counted is logged as a warning and not refused, since a document may be what repairs a service.
    """

    async def review(before: specs.Factory, after: specs.Factory) -> None:
        if _names(before) <= _names(after):
            return
        inventory = await look()
        if found := [each for each in stored.newly_hidden(before, after, inventory.stored) if each.renamed]:
            raise specs.InvalidConfiguration([str(each) for each in found], "factory.yaml")
        for why in inventory.unknown:
            logger.warning("names were removed from factory.yaml; it is not known whether that hides %s", why)

    return review


def _names(factory: specs.Factory) -> set[tuple[str, str]]:
    return {("tenant", each.name) for each in factory.tenants} | {
        ("knowledge base", each.name) for each in factory.knowledge_bases
    }


async def _documents(stub: gateway_pb2_grpc.GatewayServiceAsyncStub) -> list[Stored]:
    request = gateway_pb2.CountDocumentsRequest()
    response = await limited.unary(stub.CountDocuments, request, timeout_seconds=_TIMEOUT_SECONDS)
    return [Stored(each.tenant, "documents", each.documents, each.knowledge_base) for each in response.counts]


async def _conversations(stub: gateway_pb2_grpc.GatewayServiceAsyncStub) -> list[Stored]:
    request = gateway_pb2.CountConversationsRequest()
    response = await limited.unary(stub.CountConversations, request, timeout_seconds=_TIMEOUT_SECONDS)
    return [Stored(each.tenant, "conversations", each.conversations) for each in response.counts]


async def _requests(stub: gateway_pb2_grpc.GatewayServiceAsyncStub) -> list[Stored]:
    request = gateway_pb2.CountRequestsRequest()
    response = await limited.unary(stub.CountRequests, request, timeout_seconds=_TIMEOUT_SECONDS)
    return [Stored(each.tenant, "requests on record", each.requests) for each in response.counts]
