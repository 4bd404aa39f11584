"""Attacks by one key, or one address, on the share of the others: what is sent is charged first, and has bounds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common.concurrency import task_group
from genaifactory_common.testing import orchestrator as script
from genaifactory_gateway.http import server
from genaifactory_gateway.openai import fields
from genaifactory_gateway.settings import Http
from genaifactory_gateway.shares import Shares
from tests.unit.gateway.conftest import BETA, USER, VIEWER, Gateway, Start, eventually

BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}).encode()


@asynccontextmanager
async def _connected(
    gateway: Gateway, sent: bytes, *, source: str = "127.0.0.1"
) -> AsyncIterator[asyncio.StreamReader]:
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
    try:
        writer.write(sent)
        yield reader
    finally:
        writer.close()


def _head(framing: bytes, *, key: str = USER) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\n%s\r\n\r\n" % (key.encode(), framing)
    )


async def _status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(20):
        return int((await reader.readline()).split()[1])


async def _insist(gateway: Gateway, sent: bytes) -> None:
    """Sends it again whenever it is answered."""
    while True:
        async with _connected(gateway, sent) as reader:
            await reader.readline()


async def _until(status: int, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The first response with this status. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            response = await ask()
            if response.status_code == status:
                return response
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"model": "none", "messages": []}', b'{"model": "chat"}', BODY.replace(b"chat", b"nothing")],
    ids=repr,
)
async def test_an_invalid_request_counts_against_the_limit_of_requests(gateway: Gateway, body: bytes) -> None:
    statuses = [(await gateway.post("/v1/chat/completions", body, key=BETA)).status_code for _ in range(6)]
    assert all(400 <= status < 429 for status in statuses[:3])
    assert statuses[3:] == [429] * 3
    refused = await gateway.post("/v1/chat/completions", body, key=BETA)
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(refused.headers["retry-after"]) > 0


async def test_a_request_without_the_permission_counts_too(gateway: Gateway) -> None:
    assert (await gateway.post("/v1/feedback", b"", key=VIEWER)).status_code == 403
    listed = await gateway.get("/v1/models", key=VIEWER)
    assert listed.headers["x-ratelimit-remaining-requests"] == "5998"


async def test_an_invalid_grpc_call_counts_against_the_limit_of_requests(gateway: Gateway) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    codes = []
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Embed(gateway_pb2.EmbedRequest(), metadata=[("authorization", f"Bearer {BETA}")])
        codes.append(refused.value.code())
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2


async def test_a_body_that_never_ends_is_charged(gateway: Gateway) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(_connected(gateway, _head(b"content-length: 100") + b"{"))
        asked = 0
        async with asyncio.timeout(20):
            while True:
                remaining = (await gateway.get("/v1/models")).headers["x-ratelimit-remaining-requests"]
                asked += 1
                if int(remaining) == 6000 - 3 - asked:
                    return


async def test_bodies_that_never_end_take_no_place_of_others(start: Start) -> None:
    async with start(max_concurrent_requests=4) as gateway, AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(_connected(gateway, _head(b"content-length: 100") + b"{"))
        await asyncio.sleep(0.2)
        assert (await gateway.chat(BETA)).status_code == 200
        assert (await gateway.chat(USER)).status_code == 200


async def test_one_tenant_leaves_a_quarter_of_the_places_to_others(start: Start) -> None:
    async with start(max_concurrent_requests=4) as gateway:
        go_on = asyncio.Event()
        gateway.orchestrator.script = [go_on, script.delta("a"), script.done()]
        running = [asyncio.create_task(gateway.chat(USER)) for _ in range(3)]
        await eventually(lambda: len(gateway.orchestrator.requests) == 3)
        refused = await gateway.chat(USER)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        running.append(asyncio.create_task(gateway.chat(BETA)))
        await eventually(lambda: len(gateway.orchestrator.requests) == 4)
        go_on.set()
        assert [(await task).status_code for task in running] == [200] * 4
        assert (await gateway.chat(USER)).status_code == 200


@pytest.mark.parametrize("framing", [b"content-length: 4194304", b"transfer-encoding: chunked"])
async def test_bodies_of_one_tenant_take_no_more_than_their_share_of_the_memory(start: Start, framing: bytes) -> None:
    size = (4 << 20) - (64 << 10)
    half = b'{"' if framing.startswith(b"content") else b"%x\r\n" % size + b" " * size + b"\r\n"
    large = [{"role": "user", "content": "?" * 500_000}]
    async with start(max_body_bytes_at_once=16 << 20) as gateway:

        async def ask() -> httpx.Response:
            return await gateway.chat(USER, messages=large)

        async with task_group() as tasks:
            attacks = [tasks.create_task(_insist(gateway, _head(framing) + half)) for _ in range(3)]
            refused = await _until(503, ask)
            assert "memory" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"] == "1"
            assert (await gateway.chat(BETA)).status_code == 200
            for attack in attacks:
                attack.cancel()
        await _until(200, ask)


async def test_large_bodies_are_parsed_one_at_a_time(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    read = fields.read

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)  # in the thread that parses
        try:
            return read(*arguments, **named)
        finally:
            running -= 1

    monkeypatch.setattr(fields, "read", counted)
    large = [{"role": "user", "content": "?" * 100_000}]
    responses = await asyncio.gather(*(gateway.chat(USER, messages=large) for _ in range(6)))
    assert [response.status_code for response in responses] == [200] * 6
    assert most == 1


async def test_one_address_leaves_a_quarter_of_the_connections_to_others(start: Start) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    async with start(http=Http(max_connections=8)) as gateway:
        async with AsyncExitStack() as stack:
            for _ in range(6):
                reader = await stack.enter_async_context(_connected(gateway, request))
                assert await _status(reader) == 200
            async with _connected(gateway, request) as refused:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await refused.readexactly(1)
            for _ in range(2):
                reader = await stack.enter_async_context(_connected(gateway, request, source="127.0.0.2"))
                assert await _status(reader) == 200
            async with _connected(gateway, request, source="127.0.0.3") as refused:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await refused.readexactly(1)
        async with asyncio.timeout(20):
            while True:
                async with _connected(gateway, request) as reader:
                    if await reader.readline():
                        return


def test_addresses_that_one_client_of_ipv6_can_choose_are_one() -> None:
    assert server._address("2001:db8::1") == server._address("2001:db8::ffff:2")
    assert server._address("2001:db8::1") != server._address("2001:db8:0:1::1")
    assert server._address("fe80::1%eth0") == server._address("fe80::2")
    assert server._address("10.0.0.1") != server._address("10.0.0.2")


def test_what_is_given_back_can_be_taken_again() -> None:
    shares = Shares(4)
    assert [shares.take("a") for _ in range(4)] == [True, True, True, False]
    assert [shares.take("b") for _ in range(2)] == [True, False]
    shares.give_back("a")
    assert [shares.take("b"), shares.take("a")] == [True, False]
    for owner, amount in (("a", 2), ("b", 2)):
        shares.give_back(owner, amount)
    assert shares.used == 0
    assert shares.take("c", 3)
