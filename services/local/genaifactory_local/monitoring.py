"""Reads usage and interactions from a running platform; what `genaifactory usage` and `genaifactory export` do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import limited, specs
from genaifactory_common.errors import NotFound
from genaifactory_local.endpoints import Platform
from genaifactory_pipelines.gateway import Gateway

_USAGE_TIMEOUT_SECONDS = 60.0
_QUERY_TIMEOUT_SECONDS = 30.0
_PAGE = 200


async def usage(channel: grpc.aio.Channel, since: datetime | None) -> list[gateway_pb2.UsageRow]:
    """Usage of the key's tenant by day, key and model. Raises FactoryError."""
    request = gateway_pb2.GetUsageRequest(start_time=timestamp(since))
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    response = await limited.unary(stub.GetUsage, request, timeout_seconds=_USAGE_TIMEOUT_SECONDS)
    return list(response.rows)


async def export(
    channel: grpc.aio.Channel, since: datetime | None, until: datetime | None, route: str
) -> AsyncIterator[gateway_pb2.ExportInteractionsResponse]:
    """Interactions of the key's tenant, with their feedback, as JSON lines. Raises FactoryError."""
    wanted = monitor_pb2.InteractionFilter(start_time=timestamp(since), end_time=timestamp(until), route=route)
    async for piece in Gateway(channel).export(wanted):
        yield piece


async def interactions(
    channel: grpc.aio.Channel, filter_: monitor_pb2.InteractionFilter, *, most: int
) -> AsyncGenerator[monitor_pb2.Interaction, None]:
    """Records of the key's tenant, newest first and without any text, up to `most`. Raises FactoryError."""
    request = gateway_pb2.QueryInteractionsRequest(filter=filter_, page_size=min(most, _PAGE), without_text=True)
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    while True:
        page = await limited.unary(stub.QueryInteractions, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        for item in page.interactions[:most]:
            yield item
        most -= len(page.interactions)
        if not page.next_page_token or most <= 0:
            return
        request.page_token = page.next_page_token


async def drift_reports(
    platform: Platform, key: str | None, route: str | None, *, most: int
) -> list[monitor_pb2.DriftReport]:
    """The last reports of drift checks, those on the latest windows first. route: None: of any.

    most: 1 to 500. Raises FactoryError.
    """
    request = gateway_pb2.GetDriftReportRequest(route=route, page_size=most)
    async with platform.connected(key) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        page = await limited.unary(stub.GetDriftReport, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
    return list(page.reports)


async def release_stats(
    platform: Platform, key: str | None, split: specs.Split, since: datetime | None
) -> gateway_pb2.GetReleaseStatsResponse:
    """What the arms of a split did for the key's tenant. Raises FactoryError."""
    request = gateway_pb2.GetReleaseStatsRequest(route=split.route, split=split.name, start_time=timestamp(since))
    async with platform.connected(key) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        return await limited.unary(stub.GetReleaseStats, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)


async def require_route(platform: Platform, key: str | None, route: str) -> None:
    """Raises NotFound unless factory.yaml has the route, or had it when something on record was answered."""
    names = [each.name for each in platform.factory().routes]
    if route in names:
        return
    wanted = monitor_pb2.InteractionFilter(route=route)
    async with platform.connected(key) as channel, aclosing(interactions(channel, wanted, most=1)) as recorded:
        async for _ in recorded:
            return
    raise NotFound(
        f"There is no route '{route}' in factory.yaml or on record; there are: {', '.join(names)}.",
        field="--route",
    )


def timestamp(value: datetime | None) -> Timestamp | None:
    """A moment as protobuf has it."""
    if value is None:
        return None
    moment_ = Timestamp()
    moment_.FromDatetime(value)
    return moment_
