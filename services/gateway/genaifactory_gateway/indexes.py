"""Lists, builds and activates index versions of a knowledge base."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.twins import Twin, twin

_METHODS = retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].methods_by_name


class Indexes:
    """The retriever's RPCs on indexes, for admitted requests."""

    def __init__(self, retriever: grpc.aio.Channel, *, timeout_seconds: float, build_timeout_seconds: float) -> None:
        """timeout_seconds: for one call other than a build."""
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(retriever)
        self._timeout_seconds = timeout_seconds
        self._build_timeout_seconds = build_timeout_seconds

    async def call(self, entry: Entry, request: Message, response: type[Twin]) -> Twin:
        """Calls the retriever's RPC of the same name, which both contracts declare alike. Raises FactoryError.

        request: of the gateway's RPC that the entry was admitted for; it names a knowledge base. response: its type.
        """
        method = entry.method.rpartition("/")[2]
        wanted: Any = twin(request, GetMessageClass(_METHODS[method].input_type))
        wanted.knowledge_base = entry.knowledge_base(wanted.knowledge_base).name
        await entry.reserve()
        rpc = getattr(self._retriever, method)
        return twin(await channels.unary(rpc, wanted, timeout_seconds=self._timeout_seconds), response)

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
