"""A fake of the part of monitor that the gateway calls: feedback, usage and interactions, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import identity, tokens
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry


class FakeFeedbackStore(monitor_pb2_grpc.MonitorServiceServicer):
    """Stores feedback by id; returns `usage` and `releases`."""

    def __init__(self) -> None:
        self.feedback: dict[str, monitor_pb2.RecordFeedbackRequest] = {}
        self.known_requests: set[str] = set()
        self.usage: list[monitor_pb2.UsageRow] = []
        self.usage_requests: list[monitor_pb2.GetUsageRequest] = []
        self.callers: list[identity.Caller] = []
        self.error: FactoryError | None = None
        self.pieces: list[monitor_pb2.ExportInteractionsResponse | FactoryError] = []
        """The messages of an export."""
        self.sent = 0
        """Pieces that gRPC has accepted."""
        self.filters: list[monitor_pb2.InteractionFilter] = []
        """Of queries and exports."""
        self.drift_reports: dict[str, monitor_pb2.DriftReport] = {}
        self.drift_requests: list[monitor_pb2.GetDriftReportRequest] = []
        self.releases: list[monitor_pb2.ReleaseStats] = []
        self.release_requests: list[monitor_pb2.GetReleaseStatsRequest] = []
        self.export_ended = asyncio.Event()
        """Set when an export has ended, in any way."""

    def app(self, verifier: tokens.Verifier, telemetry: Telemetry | None = None) -> ServiceApp:
        """The service, to be run by `testing.served`."""
        return ServiceApp(
            name="monitor",
            telemetry=telemetry or Telemetry("monitor"),
            service_names=("genaifactory.monitor.v1.MonitorService",),
            register=lambda server: monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self, server),
            lifespan=_nothing_to_open,
            verifier=verifier,
        )

    async def RecordFeedback(
        self, request: monitor_pb2.RecordFeedbackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.RecordFeedbackResponse:
        """Stores it."""
        self.callers.append(identity.current())
        if self.error is not None:
            raise self.error
        self.feedback[request.feedback_id] = request
        return monitor_pb2.RecordFeedbackResponse(interaction_known=request.request_id in self.known_requests)

    async def RecordDriftReport(
        self, request: monitor_pb2.RecordDriftReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.RecordDriftReportResponse:
        """Stores it."""
        self.callers.append(identity.current())
        if self.error is not None:
            raise self.error
        replaced = request.report.report_id in self.drift_reports
        self.drift_reports[request.report.report_id] = request.report
        return monitor_pb2.RecordDriftReportResponse(report=request.report, replaced=replaced)

    async def GetDriftReport(
        self, request: monitor_pb2.GetDriftReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.GetDriftReportResponse:
        """Returns all."""
        self.callers.append(identity.current())
        if self.error is not None:
            raise self.error
        self.drift_requests.append(request)
        return monitor_pb2.GetDriftReportResponse(reports=self.drift_reports.values())

    async def GetReleaseStats(
        self, request: monitor_pb2.GetReleaseStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.GetReleaseStatsResponse:
        """Returns `releases`."""
        self.callers.append(identity.current())
        self.release_requests.append(request)
        return monitor_pb2.GetReleaseStatsResponse(rows=self.releases)

    async def GetUsage(
        self, request: monitor_pb2.GetUsageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.GetUsageResponse:
        """Returns `usage`."""
        self.callers.append(identity.current())
        self.usage_requests.append(request)
        return monitor_pb2.GetUsageResponse(rows=self.usage)

    async def QueryInteractions(
        self, request: monitor_pb2.QueryInteractionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> monitor_pb2.QueryInteractionsResponse:
        """Returns one interaction of the filter's tenant."""
        self.callers.append(identity.current())
        self.filters.append(request.filter)
        interaction = monitor_pb2.Interaction(request_id="req-1", tenant=request.filter.tenant)
        return monitor_pb2.QueryInteractionsResponse(interactions=[interaction])

    async def ExportInteractions(
        self, request: monitor_pb2.ExportInteractionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[monitor_pb2.ExportInteractionsResponse]:
        """Sends `pieces`."""
        self.callers.append(identity.current())
        self.filters.append(request.filter)
        try:
            for piece in self.pieces:
                if isinstance(piece, FactoryError):
                    raise piece
                yield piece
                self.sent += 1
        finally:
            self.export_ended.set()


@asynccontextmanager
async def _nothing_to_open() -> AsyncIterator[None]:
    yield
