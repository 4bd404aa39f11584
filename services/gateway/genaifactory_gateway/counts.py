"""Counts of stored data of every tenant, also of tenants that factory.yaml does not declare.

A changed factory.yaml is compared with them before it is in force. They need the permission 'operate', in any tenant.
"""

from __future__ import annotations

from collections import Counter

from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.twins import twin
from genaifactory_gateway.upstream import Channels

_FIRST_SECOND = 946_684_800  # of 2000, the earliest that monitor accepts


class Counts:
    """Calls the services that store data. Every method raises FactoryError."""

    def __init__(self, to: Channels, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one call."""
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(to.retriever)
        self._orchestrator = orchestrator_pb2_grpc.OrchestratorServiceStub(to.orchestrator)
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(to.monitor)
        self._timeout_seconds = timeout_seconds

    async def documents(self, entry: Entry) -> gateway_pb2.CountDocumentsResponse:
        """Documents by tenant and knowledge base."""
        await entry.reserve()
        found = await channels.unary(
            self._retriever.CountDocuments,
            retriever_pb2.CountDocumentsRequest(),
            timeout_seconds=self._timeout_seconds,
        )
        return twin(found, gateway_pb2.CountDocumentsResponse)

    async def conversations(self, entry: Entry) -> gateway_pb2.CountConversationsResponse:
        """Conversations by tenant."""
        await entry.reserve()
        found = await channels.unary(
            self._orchestrator.CountConversations,
            orchestrator_pb2.CountConversationsRequest(),
            timeout_seconds=self._timeout_seconds,
        )
        return twin(found, gateway_pb2.CountConversationsResponse)

    async def requests(self, entry: Entry) -> gateway_pb2.CountRequestsResponse:
        """Recorded requests by tenant."""
        await entry.reserve()
        usage = await channels.unary(
            self._monitor.GetUsage,
            monitor_pb2.GetUsageRequest(tenant="*", start_time=Timestamp(seconds=_FIRST_SECOND)),
            timeout_seconds=self._timeout_seconds,
        )
        of_tenant: Counter[str] = Counter()
        for row in usage.rows:
            of_tenant[row.tenant] += row.requests
        return gateway_pb2.CountRequestsResponse(
            counts=[
                gateway_pb2.RequestCount(tenant=tenant, requests=count) for tenant, count in sorted(of_tenant.items())
            ]
        )
