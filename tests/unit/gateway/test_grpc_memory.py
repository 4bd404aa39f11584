"""Attacks on the memory of the gateway over gRPC: no message of a call without a valid key is read."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_gateway.admission import SERVICE
from genaifactory_gateway.settings import Http, Transfers
from tests.unit.gateway.conftest import BETA, EDITOR, USER, Gateway, Start

METHODS = [method.name for method in gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods]
_HEADERS = [
    *((":method", "POST"), (":scheme", "http"), (":authority", "x"), ("te", "trailers")),
    *(("content-type", "application/grpc"), ("authorization", f"Bearer {USER}")),
]
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


def _silent(gateway: Gateway, method: str, key: str = USER) -> Any:
    """A call that sends no message."""
    call: Any = gateway.channel.stream_stream(f"/{SERVICE}/{method}")
    return call(metadata=[("authorization", f"Bearer {key}")], timeout=20)


async def _embed(gateway: Gateway, key: str) -> gateway_pb2.EmbedResponse:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    request = gateway_pb2.EmbedRequest(model="minilm", texts=["?"])
    return await stub.Embed(request, metadata=[("authorization", f"Bearer {key}")], timeout=20)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "Ingest"])
async def test_a_message_that_never_ends_is_ended(start: Start, method: str) -> None:
    async with start(http=Http(body_timeout_seconds=0.2)) as gateway:
        call = _silent(gateway, method)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 0.2 seconds" in (await call.details() or "")  # and not the client's own deadline


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the sockets of this test's gateway alone."""
    with tempfile.TemporaryDirectory(prefix="gf-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


async def test_the_gateway_accepts_few_of_many_long_messages_that_never_end(start: Start, sockets: Path) -> None:
    """20 calls on one connection, each with a message of 15 MiB that lacks its last bytes."""
    async with start(max_body_bytes_at_once=32 << 20) as gateway:
        (socket,) = await asyncio.to_thread(lambda: list(sockets.glob("gf-*/gateway.sock")))
        accepted = await _accepted(str(socket), calls=20)
        assert 0 < accepted < (32 << 20) + 20 * (128 << 10)
        assert (await _embed(gateway, USER)).embeddings


async def _accepted(socket: str, *, calls: int) -> int:
    """How many bytes of incomplete messages the gateway accepts until it accepts no more for four seconds."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        connection = H2Connection(H2Configuration(client_side=True))
        connection.initiate_connection()
        left = dict.fromkeys(range(1, 40, 2), (15 << 20) - 1000)
        for number in left:
            connection.send_headers(number, [(":path", f"/{SERVICE}/Embed"), *_HEADERS])
            connection.send_data(number, b"\0" + (15 << 20).to_bytes(4, "big"))
        with contextlib.suppress(TimeoutError):
            while True:
                for number, bytes_ in left.items():
                    window = connection.local_flow_control_window(number)
                    if size := min(window, connection.max_outbound_frame_size, bytes_):
                        connection.send_data(number, b"?" * size)
                        left[number] -= size
                writer.write(connection.data_to_send())
                await writer.drain()
                async with asyncio.timeout(4):  # it accepts no more
                    connection.receive_data(await reader.read(1 << 16))
        return sum((15 << 20) - 1000 - bytes_ for bytes_ in left.values())
    finally:
        writer.close()


async def test_uploads_whose_first_message_never_ends_are_few(start: Start) -> None:
    async with start(transfers=Transfers(max_concurrent_per_tenant=2)) as gateway:
        calls = [_silent(gateway, "Ingest", EDITOR) for _ in range(5)]
        codes = [asyncio.create_task(call.code()) for call in calls]
        done, waiting = await asyncio.wait(codes, timeout=2.0)
        assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(waiting) == 2
        for call in calls:
            call.cancel()
        await asyncio.wait(codes)


async def test_a_call_that_ends_without_a_message_is_refused(gateway: Gateway) -> None:
    call = _silent(gateway, "Embed")
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_messages_that_never_end_leave_places_to_other_tenants(start: Start) -> None:
    async with start(max_concurrent_calls=8) as gateway:
        calls = [_silent(gateway, "Embed") for _ in range(8)]
        codes = [asyncio.create_task(call.code()) for call in calls]
        done, waiting = await asyncio.wait(codes, timeout=1.0)
        assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(waiting) == 6
        assert (await _embed(gateway, BETA)).embeddings
        for call in calls:
            call.cancel()
        await asyncio.wait(codes)
        async with asyncio.timeout(20):
            while True:  # the gateway learns it in time
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await _embed(gateway, USER)).embeddings
                    return


async def test_few_messages_are_read_at_once_and_the_others_wait(start: Start) -> None:
    async with start(max_body_bytes_at_once=32 << 20, http=Http(body_timeout_seconds=1.5)) as gateway:
        silent = [_silent(gateway, "Embed") for _ in range(2)]  # the places of the tenant
        await asyncio.sleep(0.5)
        waits = asyncio.create_task(_embed(gateway, USER))
        await asyncio.sleep(0.5)
        assert not waits.done()
        assert (await waits).embeddings
        assert {await call.code() for call in silent} == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_messages_of_all_methods_count_against_the_memory_for_bodies(start: Start) -> None:
    async with start(max_body_bytes_at_once=16 << 20) as gateway:
        stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
        request = gateway_pb2.SubmitFeedbackRequest(comment="?" * (13 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SubmitFeedback(request, metadata=[("authorization", f"Bearer {USER}")])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


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
