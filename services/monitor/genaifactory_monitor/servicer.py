"""MonitorService: which tenant's data a caller may read, and the conversion between messages and records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import bounds, identity
from genaifactory_common.errors import InvalidArgument, PermissionDenied
from genaifactory_common.space import Space
from genaifactory_common.telemetry import Telemetry
from genaifactory_monitor import (
    converters,
    drift_reports,
    export,
    metrics,
    paging,
    release_stats,
    store,
    usage,
)
from genaifactory_monitor.database import Database
from genaifactory_monitor.message_dicts import clock_us, timestamp
from genaifactory_monitor.settings import Settings

_DEFAULT_PAGE = 50
_MAX_PAGE = 500
# Leaves room below channels.MAX_MESSAGE_BYTES for one more record of any permitted size.
_PAGE_BYTES = 4 * 1024 * 1024
_PIECE_BYTES = 4 * 1024 * 1024
# Records converted before other calls get a turn on the event loop.
_RECORDS_PER_TURN = 50


class MonitorServicer(monitor_pb2_grpc.MonitorServiceServicer):
    """The service over one database."""

    def __init__(self, database: Database, settings: Settings, space: Space | None, telemetry: Telemetry) -> None:
        """space: of the disk with the database; None: it is on no disk of this service."""
        self._space = space
        self._database = database
        self._telemetry = telemetry
        self._settings = settings
        self._recorder = metrics.Recorder(settings.max_metric_series)

    async def RecordInteractions(
        self, request: monitor_pb2.RecordInteractionsRequest, context: Any
    ) -> monitor_pb2.RecordInteractionsResponse:
        """Called by services in their own name: each record names its tenant."""
        self._require_space()
        count = len(request.interactions)
        if not 1 <= count <= converters.MAX_INTERACTIONS:
            raise InvalidArgument(
                f"interactions must have 1 to {converters.MAX_INTERACTIONS} records, not {count}.", field="interactions"
            )
        now_us = clock_us()
        records = []
        for i, message in enumerate(request.interactions):
            if i and i % _RECORDS_PER_TURN == 0:
                await asyncio.sleep(0)
            records.append(
                converters.interaction(
                    message, f"interactions[{i}]", now_us=now_us, max_bytes=self._settings.max_record_bytes
                )
            )
        with self._telemetry.joined("record interaction", (message.traceparent for message in request.interactions)):
            stored = await store.record(self._database, records)
        for item in stored:
            self._recorder.count(item)
        metrics.KNOWN.inc(count - len(stored))
        return monitor_pb2.RecordInteractionsResponse(stored=len(stored), known=count - len(stored))

    async def RecordFeedback(
        self, request: monitor_pb2.RecordFeedbackRequest, context: Any
    ) -> monitor_pb2.RecordFeedbackResponse:
        """For the caller's own tenant."""
        caller = identity.current()
        self._require_space()
        given = converters.feedback(
            request, tenant=caller.tenant, principal=caller.principal, key_id=caller.key_id, now_us=clock_us()
        )
        new, known = await store.add_feedback(self._database, given)
        if new:
            metrics.FEEDBACK.labels(given.rating or "none", "known" if known else "unknown").inc()
        return monitor_pb2.RecordFeedbackResponse(interaction_known=known)

    def _require_space(self) -> None:
        """Raises OutOfSpace."""
        if self._space is not None:
            self._space.require()

    async def QueryInteractions(
        self, request: monitor_pb2.QueryInteractionsRequest, context: Any
    ) -> monitor_pb2.QueryInteractionsResponse:
        """A page, newest first."""
        limit = bounds.wanted(request.page_size, "page_size", default=_DEFAULT_PAGE, most=_MAX_PAGE)
        filter_ = converters.interaction_filter(
            request.filter, tenant=_allowed_tenant(request.filter.tenant, "filter.tenant")
        )
        found = await store.page(
            self._database,
            filter_,
            after=paging.decode(request.page_token, filter_) if request.page_token else None,
            limit=limit,
            max_bytes=_PAGE_BYTES,
            newest_first=True,
            without_text=request.without_text,
        )
        return monitor_pb2.QueryInteractionsResponse(
            interactions=found.interactions,
            next_page_token=paging.encode(found.next, filter_) if found.next else "",
        )

    async def GetUsage(self, request: monitor_pb2.GetUsageRequest, context: Any) -> monitor_pb2.GetUsageResponse:
        """Returns the usage of its own key to a caller without the permission 'usage'.

        Open to any caller: the permission that is needed depends on the tenant that the request names.
        """
        caller = identity.current()
        own_key = None if "usage" in caller.permissions else caller.key_id
        if own_key is not None and request.tenant not in ("", caller.tenant):
            caller.require("usage")
        tenant = _allowed_tenants(request.tenant)
        now_us = clock_us()
        start_us, end_us = converters.period(request, now_us=now_us)
        rows = await usage.between(self._database, tenant, start_us, end_us, key_id=own_key, now_us=now_us)
        return monitor_pb2.GetUsageResponse(rows=[converters.usage_row(key, sums) for key, sums in rows])

    async def GetReleaseStats(
        self, request: monitor_pb2.GetReleaseStatsRequest, context: Any
    ) -> monitor_pb2.GetReleaseStatsResponse:
        """Of whole hours."""
        wanted = converters.release_filter(request, tenant=_allowed_tenants(request.tenant), now_us=clock_us())
        return monitor_pb2.GetReleaseStatsResponse(
            rows=await release_stats.between(self._database, wanted),
            start_time=timestamp(wanted.start_us),
            end_time=timestamp(wanted.end_us),
        )

    async def RecordDriftReport(
        self, request: monitor_pb2.RecordDriftReportRequest, context: Any
    ) -> monitor_pb2.RecordDriftReportResponse:
        """For the caller's own tenant."""
        self._require_space()
        caller = identity.current()
        report = converters.drift_report(
            request.report, tenant=caller.tenant, principal=caller.principal, key_id=caller.key_id, now_us=clock_us()
        )
        stored, replaced = await drift_reports.record(self._database, report)
        return monitor_pb2.RecordDriftReportResponse(report=stored, replaced=replaced)

    async def GetDriftReport(
        self, request: monitor_pb2.GetDriftReportRequest, context: Any
    ) -> monitor_pb2.GetDriftReportResponse:
        """A page, those on the latest windows first."""
        limit = bounds.wanted(request.page_size, "page_size", default=_DEFAULT_PAGE, most=_MAX_PAGE)
        filter_ = converters.drift_filter(request, tenant=_allowed_tenant(request.tenant, "tenant"))
        after = paging.decode(request.page_token, filter_) if request.page_token else None
        found = await drift_reports.page(self._database, filter_, after=after, limit=limit)
        return monitor_pb2.GetDriftReportResponse(
            reports=found.reports, next_page_token=paging.encode(found.next, filter_) if found.next else ""
        )

    async def ExportInteractions(
        self, request: monitor_pb2.ExportInteractionsRequest, context: Any
    ) -> AsyncIterator[monitor_pb2.ExportInteractionsResponse]:
        """All that match, oldest first."""
        filter_ = converters.interaction_filter(
            request.filter, tenant=_allowed_tenant(request.filter.tenant, "filter.tenant")
        )
        async for piece, count in export.lines(self._database, filter_):
            for start in range(0, len(piece), _PIECE_BYTES):
                end = start + _PIECE_BYTES
                yield monitor_pb2.ExportInteractionsResponse(
                    jsonl=piece[start:end], count=count if end >= len(piece) else 0
                )


def _allowed_tenants(requested: str) -> str | None:
    """As `_allowed_tenant`; None for "*", every tenant. Raises PermissionDenied for it without 'operate'."""
    if requested != "*":
        return _allowed_tenant(requested, "tenant")
    identity.current().require("operate")
    return None


def _allowed_tenant(requested: str, field: str) -> str:
    """The requested tenant, or the caller's own. Raises PermissionDenied for another without 'operate'."""
    caller = identity.current()
    if requested in ("", caller.tenant):
        return caller.tenant
    if "operate" not in caller.permissions:
        raise PermissionDenied(
            f"The role '{caller.role}' may read only its own tenant; reading others needs the permission 'operate'.",
            field=field,
        )
    return converters.requested_tenant(requested, field)
