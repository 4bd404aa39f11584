"""Reads usage and interactions from a running platform; what `genaifactory usage` and `genaifactory export` do."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels, settings
from genaifactory_common.errors import InvalidArgument, NotFound, from_rpc
from genaifactory_local.endpoints import PATIENCE_SECONDS, Platform

_USAGE_TIMEOUT_SECONDS = 60.0
_EXPORT_TIMEOUT_SECONDS = 3600.0
_QUERY_TIMEOUT_SECONDS = 30.0
_PAGE = 200

_AGE = re.compile(r"(\d{1,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, now: datetime, option: str) -> datetime:
    """The time that `text` means: an age ("90m", "24h", "7d", "2w") or an ISO date or time, UTC unless it says other.

    Raises InvalidArgument.
    """
    try:
        if match := _AGE.fullmatch(text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        value = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"'{text}' is no time. Give an age like 24h or 7d, or a date like 2026-11-21.", field=option
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


async def usage(
    grpc_address: str, key: str, since: datetime | None, tls: settings.Tls | None = None
) -> list[gateway_pb2.UsageRow]:
    """Usage of the key's tenant by day, key and model, through the gateway. Raises FactoryError."""
    request = gateway_pb2.GetUsageRequest(start_time=timestamp(since))
    async with channels.connect(grpc_address, tls) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        try:
            response = await stub.GetUsage(
                request, timeout=_USAGE_TIMEOUT_SECONDS, metadata=[("authorization", f"Bearer {key}")]
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
    return list(response.rows)


async def export(
    address: str, since: datetime | None, until: datetime | None, route: str, tls: settings.Tls | None = None
) -> AsyncIterator[monitor_pb2.ExportInteractionsResponse]:
    """Interactions with their feedback as JSON lines, from monitor, for the current caller. Raises FactoryError."""
    request = monitor_pb2.ExportInteractionsRequest(
        filter=monitor_pb2.InteractionFilter(start_time=timestamp(since), end_time=timestamp(until), route=route)
    )
    async with channels.connect(address, tls, patience_seconds=PATIENCE_SECONDS) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        async for response in channels.stream(
            stub.ExportInteractions, request, timeout_seconds=_EXPORT_TIMEOUT_SECONDS
        ):
            yield response


def connected(platform: Platform, *, patience_seconds: float = PATIENCE_SECONDS) -> grpc.aio.Channel:
    """A channel to the platform's monitor, which waits so long for a monitor that restarts."""
    return channels.connect(platform.address("monitor"), platform.tls, patience_seconds=patience_seconds)


async def interactions(
    channel: grpc.aio.Channel, filter_: monitor_pb2.InteractionFilter, *, most: int
) -> AsyncGenerator[monitor_pb2.Interaction, None]:
    """The current caller's records, newest first and without any text, up to `most`. Raises FactoryError."""
    request = monitor_pb2.QueryInteractionsRequest(filter=filter_, page_size=min(most, _PAGE), without_text=True)
    stub = monitor_pb2_grpc.MonitorServiceStub(channel)
    while True:
        page = await channels.unary(stub.QueryInteractions, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        for item in page.interactions[:most]:
            yield item
        most -= len(page.interactions)
        if not page.next_page_token or most <= 0:
            return
        request.page_token = page.next_page_token


async def require_route(platform: Platform, sign_in: Callable[[], None], route: str) -> None:
    """Raises NotFound unless factory.yaml has the route, or had it when something on record was answered."""
    names = [each.name for each in platform.factory().routes]
    if route in names:
        return
    sign_in()
    wanted = monitor_pb2.InteractionFilter(route=route)
    async with connected(platform) as channel, aclosing(interactions(channel, wanted, most=1)) as recorded:
        async for _ in recorded:
            return
    raise NotFound(
        f"There is no route '{route}', and nothing on record was answered by one; there are: {', '.join(names)}.",
        field="--route",
    )


def timestamp(value: datetime | None) -> Timestamp | None:
    """A moment as messages carry it."""
    if value is None:
        return None
    moment_ = Timestamp()
    moment_.FromDatetime(value)
    return moment_
