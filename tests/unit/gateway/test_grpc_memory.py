"""Attacks on the memory of the gateway over gRPC: no message of a call without a valid key is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_gateway.admission import SERVICE
from genaifactory_gateway.settings import Http
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


@pytest.mark.parametrize("metadata", [None, UNKNOWN], ids=["none", "unknown"])
async def test_a_stream_of_messages_without_a_valid_key_gets_the_error(
    gateway: Gateway, metadata: tuple[tuple[str, str], ...] | None
) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Ingest(_document(), metadata=metadata, timeout=20):
                pass
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def _document() -> AsyncIterator[gateway_pb2.IngestRequest]:
    yield gateway_pb2.IngestRequest(open=gateway_pb2.IngestOpen())
    for _ in range(5):
        yield gateway_pb2.IngestRequest(data=b"?" * (1 << 20))


async def test_bytes_over_grpc_and_http_count_together(start: Start) -> None:
    async with start(max_body_bytes_at_once=16 << 20, http=Http(max_body_bytes=12 << 20)) as gateway:
        stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)

        async def embed(size: int, key: str = USER) -> gateway_pb2.EmbedResponse:
            request = gateway_pb2.EmbedRequest(model="minilm", texts=["?" * size])
            return await stub.Embed(request, metadata=[("authorization", f"Bearer {key}")])

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await embed(13 << 20)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "memory" in (refused.value.details() or "")
        assert (await embed(1, BETA)).embeddings

        host, _, port = gateway.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {9 << 20}\r\nauthorization: Bearer {USER}\r\n"
        )
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + b"?" * (8 << 20))
        await writer.drain()
        await _until(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: embed(5 << 20))
        writer.close()
        await _until(grpc.StatusCode.INVALID_ARGUMENT, lambda: embed(5 << 20))  # one text is too long


async def _until(code: grpc.StatusCode, ask: Callable[[], Awaitable[object]]) -> None:
    """Asks until this is the error. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask()
            if refused.value.code() is code:
                return
            await asyncio.sleep(0.05)
