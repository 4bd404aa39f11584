"""The gateway as steps see it: a restart is waited out, and a call that cannot succeed is not repeated."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common import channels
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.gateway import Gateway


class Restarts(gateway_pb2_grpc.GatewayServiceServicer):
    """Embeds a text as its length, from the second call on, by one model."""

    calls = 0

    async def Embed(
        self, request: gateway_pb2.EmbedRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> gateway_pb2.EmbedResponse:
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        if request.model != "minilm":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT)
        return gateway_pb2.EmbedResponse(
            embeddings=[gateway_pb2.Embedding(values=[len(text)]) for text in request.texts]
        )


async def test_texts_are_embedded_once_the_platform_is_back(tmp_path: Path) -> None:
    service, server = Restarts(), grpc.aio.server()
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(service, server)
    server.add_insecure_port(address := f"unix:{tmp_path}/gateway.sock")
    await server.start()
    async with channels.connect(address, api_key="gf-key") as channel:
        gateway = Gateway(channel, patience_seconds=20)
        found = await gateway.embed(["a", "abc"], "minilm")
        assert [list(vector) for vector in found] == [[1.0], [3.0]]
        assert service.calls == 2
        with pytest.raises(InvalidArgument):
            await gateway.embed(["a"], "other")
        assert service.calls == 3  # what does not pass is not repeated
    await server.stop(None)
