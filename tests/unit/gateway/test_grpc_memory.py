"""Attacks on the memory of the gateway over gRPC: no message of a call without a valid key is read."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_gateway.admission import SERVICE
from tests.unit.gateway.conftest import BETA, USER, Gateway, Start

METHODS = [method.name for method in gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods]
UNKNOWN, BASIC = (("authorization", "Bearer sk-unknown"),), (("authorization", "Basic x"),)


@pytest.mark.parametrize(
    ("method", "metadata"),
    [*((method, ()) for method in METHODS), ("Chat", UNKNOWN), ("Ingest", UNKNOWN), ("Embed", BASIC)],
)
async def test_a_call_without_a_valid_key_is_refused_before_its_message_is_read(
    gateway: Gateway, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    call: Any = gateway.channel.stream_stream(f"/{SERVICE}/{method}")(metadata=metadata, timeout=5)  # sends nothing
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("metadata", [None, UNKNOWN], ids=["none", "unknown"])
async def test_a_large_message_without_a_valid_key_gets_the_error(
    gateway: Gateway, metadata: tuple[tuple[str, str], ...] | None
) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    message = types_pb2.Message(role=types_pb2.ROLE_USER, content="?" * (15 << 20))
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Chat(gateway_pb2.ChatRequest(model="chat", messages=[message]), metadata=metadata):
                pass
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Embed(gateway_pb2.EmbedRequest(texts=["?" * (15 << 20)]), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_bytes_over_grpc_and_http_count_together(start: Start) -> None:
    async with start(max_body_bytes_at_once=16 << 20) as gateway:
        stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
        request = gateway_pb2.EmbedRequest(model="minilm", texts=["?" * (13 << 20)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Embed(request, metadata=[("authorization", f"Bearer {USER}")])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "memory" in (refused.value.details() or "")
        small = gateway_pb2.EmbedRequest(model="minilm", texts=["?"])
        assert (await stub.Embed(small, metadata=[("authorization", f"Bearer {BETA}")])).embeddings
