"""Queries and exports the recorded interactions of the key's tenant."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels
from genaifactory_common.errors import PermissionDenied
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.transfers import Transfers


class Records:
    """Monitor's RPCs on interactions, for requests admitted with the permission 'export'."""

    def __init__(self, monitor: grpc.aio.Channel, transfers: Transfers, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one page."""
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(monitor)
        self._transfers = transfers
        self._timeout_seconds = timeout_seconds

    async def query(
        self, entry: Entry, request: gateway_pb2.QueryInteractionsRequest
    ) -> gateway_pb2.QueryInteractionsResponse:
        """A page of interactions. Raises FactoryError."""
        wanted = _of_tenant(entry, request.filter)
        await entry.reserve()
        page = await channels.unary(
            self._monitor.QueryInteractions,
            monitor_pb2.QueryInteractionsRequest(
                filter=wanted,
                page_size=request.page_size,
                page_token=request.page_token,
                without_text=request.without_text,
            ),
            timeout_seconds=self._timeout_seconds,
        )
        return gateway_pb2.QueryInteractionsResponse(
            interactions=page.interactions, next_page_token=page.next_page_token
        )

    async def export(
        self, entry: Entry, filter_: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """Yields interactions as lines of JSON, oldest first, at the pace of the reader. Raises FactoryError."""
        request = monitor_pb2.ExportInteractionsRequest(filter=_of_tenant(entry, filter_))
        with self._transfers.one(entry.holder.tenant.name):
            await entry.reserve()
            timeout_seconds = self._transfers.settings.timeout_seconds
            call = channels.stream(self._monitor.ExportInteractions, request, timeout_seconds=timeout_seconds)
            async with aclosing(call) as pieces:
                async for piece in pieces:
                    yield gateway_pb2.ExportInteractionsResponse(jsonl=piece.jsonl, count=piece.count)


def _of_tenant(entry: Entry, wanted: monitor_pb2.InteractionFilter) -> monitor_pb2.InteractionFilter:
    """The filter with the key's tenant: monitor accepts any tenant from a caller with the permission 'operate'."""
    tenant = entry.holder.tenant.name
    if wanted.tenant not in ("", tenant):
        raise PermissionDenied(
            "A key may read records of its own tenant only; leave 'filter.tenant' empty.", field="filter.tenant"
        )
    own = monitor_pb2.InteractionFilter()
    own.CopyFrom(wanted)
    own.DiscardUnknownFields()
    own.tenant = tenant
    return own
