"""The record of the key's tenant: queries and exports of interactions, verdicts on their drift, releases compared."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels, identity
from genaifactory_common.errors import PermissionDenied
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.transfers import Transfers
from genaifactory_gateway.twins import twin


class Records:
    """Monitor's RPCs on interactions, their drift and their releases; admission has checked the permission."""

    def __init__(self, monitor: grpc.aio.Channel, transfers: Transfers, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one page."""
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(monitor)
        self._transfers = transfers
        self._timeout_seconds = timeout_seconds

    async def query(
        self, entry: Entry, request: gateway_pb2.QueryInteractionsRequest
    ) -> gateway_pb2.QueryInteractionsResponse:
        """A page of interactions. Raises FactoryError."""
        wanted = _of_tenant(entry, request.filter, "filter.tenant")
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
        request = monitor_pb2.ExportInteractionsRequest(filter=_of_tenant(entry, filter_, "filter.tenant"))
        with self._transfers.one(entry.holder.tenant.name):
            await entry.reserve()
            timeout_seconds = self._transfers.settings.timeout_seconds
            call = channels.stream(self._monitor.ExportInteractions, request, timeout_seconds=timeout_seconds)
            async with aclosing(call) as pieces:
                async for piece in pieces:
                    yield gateway_pb2.ExportInteractionsResponse(jsonl=piece.jsonl, count=piece.count)

    async def record_drift(
        self, entry: Entry, request: gateway_pb2.RecordDriftReportRequest
    ) -> gateway_pb2.RecordDriftReportResponse:
        """Stores a verdict; monitor sets its tenant. Raises FactoryError."""
        await entry.reserve()
        stored = await channels.unary(
            self._monitor.RecordDriftReport,
            twin(request, monitor_pb2.RecordDriftReportRequest),
            timeout_seconds=self._timeout_seconds,
        )
        return twin(stored, gateway_pb2.RecordDriftReportResponse)

    async def drift(
        self, entry: Entry, request: gateway_pb2.GetDriftReportRequest
    ) -> gateway_pb2.GetDriftReportResponse:
        """A page of verdicts. Raises FactoryError."""
        wanted = _of_tenant(entry, twin(request, monitor_pb2.GetDriftReportRequest), "tenant")
        await entry.reserve()
        page = await channels.unary(self._monitor.GetDriftReport, wanted, timeout_seconds=self._timeout_seconds)
        return twin(page, gateway_pb2.GetDriftReportResponse)

    async def release_stats(
        self, entry: Entry, request: gateway_pb2.GetReleaseStatsRequest
    ) -> gateway_pb2.GetReleaseStatsResponse:
        """What each release of a route did; of every tenant for a key with 'operate'. Raises FactoryError."""
        wanted = twin(request, monitor_pb2.GetReleaseStatsRequest)
        if wanted.tenant == "*":
            identity.require_any({"operate"}, entry.holder.role.name, entry.holder.role.permissions)
        else:
            wanted = _of_tenant(entry, wanted, "tenant")
        await entry.reserve()
        found = await channels.unary(self._monitor.GetReleaseStats, wanted, timeout_seconds=self._timeout_seconds)
        return twin(found, gateway_pb2.GetReleaseStatsResponse)


_Wanted = TypeVar(
    "_Wanted", monitor_pb2.InteractionFilter, monitor_pb2.GetDriftReportRequest, monitor_pb2.GetReleaseStatsRequest
)


def _of_tenant(entry: Entry, wanted: _Wanted, field: str) -> _Wanted:
    """The message with the key's tenant: monitor accepts any tenant from a caller with the permission 'operate'."""
    tenant = entry.holder.tenant.name
    if wanted.tenant not in ("", tenant):
        raise PermissionDenied(f"A key may read records of its own tenant only; leave '{field}' empty.", field=field)
    own = type(wanted)()
    own.CopyFrom(wanted)
    own.DiscardUnknownFields()
    own.tenant = tenant
    return own
