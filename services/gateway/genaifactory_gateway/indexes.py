"""Lists, builds and activates index versions of a knowledge base."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.twins import twin


class Indexes:
    """The retriever's RPCs on indexes, for admitted requests."""

    def __init__(self, retriever: grpc.aio.Channel, *, timeout_seconds: float, build_timeout_seconds: float) -> None:
        """timeout_seconds: for one call other than a build."""
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(retriever)
        self._timeout_seconds = timeout_seconds
        self._build_timeout_seconds = build_timeout_seconds

    async def list(self, entry: Entry, request: gateway_pb2.ListIndexesRequest) -> gateway_pb2.ListIndexesResponse:
        """The versions, newest first. Raises FactoryError."""
        wanted = twin(request, retriever_pb2.ListIndexesRequest)
        wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        found = await channels.unary(self._retriever.ListIndexes, wanted, timeout_seconds=self._timeout_seconds)
        return twin(found, gateway_pb2.ListIndexesResponse)

    async def build(
        self, entry: Entry, request: gateway_pb2.BuildIndexRequest
    ) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
        """Builds a version and yields the progress. Raises FactoryError."""
        wanted = twin(request, retriever_pb2.BuildIndexRequest)
        wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        call = channels.stream(self._retriever.BuildIndex, wanted, timeout_seconds=self._build_timeout_seconds)
        async with aclosing(call) as steps:
            async for step in steps:
                yield twin(step, gateway_pb2.BuildIndexResponse)

    async def swap(self, entry: Entry, request: gateway_pb2.SwapIndexRequest) -> gateway_pb2.SwapIndexResponse:
        """Makes a version the active one. Raises FactoryError."""
        wanted = twin(request, retriever_pb2.SwapIndexRequest)
        wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        done = await channels.unary(self._retriever.SwapIndex, wanted, timeout_seconds=self._timeout_seconds)
        return twin(done, gateway_pb2.SwapIndexResponse)
