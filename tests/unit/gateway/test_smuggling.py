"""Attacks by request smuggling, on a raw socket: no byte of a request's body is ever read as another request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Sequence

import pytest

from tests.unit.gateway.conftest import BETA, USER, Gateway, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}).encode()
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def _request(headers: bytes = b"", body: bytes = BODY, *, key: str = USER, framing: bytes | None = None) -> bytes:
    if framing is None:
        framing = b"content-length: %d\r\n" % len(body)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\n" % key.encode()
    ) + (headers + framing + b"\r\n" + body)


SMUGGLED = _request(b"connection: close\r\n", key=BETA)
"""A whole request with the key of another tenant."""


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


async def _statuses(gateway: Gateway, *segments: bytes) -> Sequence[int]:
    """The statuses of all responses to the segments, which are sent one after the other, and to a last request behind
    them: 200, where the connection is still open."""
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    with contextlib.suppress(ConnectionError):  # the gateway has closed the connection
        for segment in (*segments, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(0.02)  # else one segment
        async with asyncio.timeout(20):
            while piece := await reader.read(1 << 16):
                received += piece
    writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def _tenants(gateway: Gateway) -> list[str]:
    """Of the requests that were answered since the last call."""
    tenants = [caller.tenant for caller in gateway.orchestrator.callers]
    gateway.orchestrator.callers.clear()
    return tenants


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2, x"])
@pytest.mark.parametrize("later", [False, True])
async def test_a_request_that_asks_for_an_upgrade_is_answered_over_http_1_with_all_of_its_body(
    lasting_gateway: Gateway, protocol: bytes, later: bool
) -> None:
    request = _request(b"connection: upgrade\r\nupgrade: " + protocol + b"\r\n")
    at = len(request) - (len(BODY) if later else 0)
    assert await _statuses(lasting_gateway, request[:at], request[at:]) == [200, 200]
    assert _tenants(lasting_gateway) == ["acme"]


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("segments", ["one", "two", "bytes"])
async def test_the_body_of_a_request_that_asks_for_an_upgrade_is_never_run_as_a_request(
    lasting_gateway: Gateway, framing: str, segments: str
) -> None:
    if framing == "chunked":
        head, body = _request(H2C, b"", framing=b"transfer-encoding: chunked\r\n"), _chunked(SMUGGLED) + LAST_CHUNK
    else:
        whole = _request(H2C, SMUGGLED)
        head, body = whole[: -len(SMUGGLED)], SMUGGLED
    sent = {
        "one": [head + body],
        "two": [head, body],
        "bytes": [bytes([byte]) for byte in head[:3]] + [head[3:-1], head[-1:], body],
    }
    assert await _statuses(lasting_gateway, *sent[segments]) == [400, 200]  # it is no question
    assert _tenants(lasting_gateway) == []


async def test_requests_that_ask_for_an_upgrade_are_answered_on_one_connection(lasting_gateway: Gateway) -> None:
    request = _request(H2C)
    assert await _statuses(lasting_gateway, request * 3 + _request(b"connection: close\r\n")) == [200] * 4
    assert _tenants(lasting_gateway) == ["acme"] * 4


@pytest.mark.parametrize("name", [b"connection", b"proxy-connection", b"Proxy-Connection"])
@pytest.mark.parametrize("value", [b"Upgrade", b"x, upgrade", b"close, upgrade"])
async def test_each_header_that_can_ask_for_an_upgrade_is_answered_over_http_1(
    lasting_gateway: Gateway, name: bytes, value: bytes
) -> None:
    request = _request(name + b": " + value + b"\r\nupgrade: h2c\r\n")
    closes = value.startswith(b"close")
    assert await _statuses(lasting_gateway, request) == ([200] if closes else [200, 200])
    assert _tenants(lasting_gateway) == ["acme"]


async def test_what_follows_a_pipelined_body_is_one_request_each(lasting_gateway: Gateway) -> None:
    two = _request() + _request(b"connection: close\r\n", key=BETA)
    for cut in range(1, len(two), 97):
        lasting_gateway.clock.now += 60  # for the tenant's limit
        assert await _statuses(lasting_gateway, two[:cut], two[cut:]) == [200, 200]
        assert _tenants(lasting_gateway) == ["acme", "beta"]


@pytest.mark.parametrize(
    "request_",
    [
        # CL.TE and TE.CL: each of two readers would end the body at another place.
        _request(b"transfer-encoding: chunked\r\n", LAST_CHUNK + SMUGGLED),
        _request(b"", LAST_CHUNK + SMUGGLED, framing=b"transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
        _request(b"", _chunked(SMUGGLED) + LAST_CHUNK, framing=b"content-length: 4\r\ntransfer-encoding: chunked\r\n"),
        # TE.TE: one of them does not know the encoding as it is written.
        _request(b"", LAST_CHUNK + SMUGGLED, framing=b"transfer-encoding: \x0bchunked\r\ncontent-length: 5\r\n"),
        _request(b"", LAST_CHUNK + SMUGGLED, framing=b"transfer-encoding : chunked\r\ncontent-length: 5\r\n"),
        # Two lengths, also equal ones, and lengths that are none.
        _request(b"", SMUGGLED, framing=b"content-length: 0\r\ncontent-length: %d\r\n" % len(SMUGGLED)),
        _request(b"", SMUGGLED, framing=b"content-length: 0\r\ncontent-length: 0\r\n"),
        *(
            _request(b"", SMUGGLED, framing=b"content-length: " + length + b"\r\n")
            for length in (b"0, 0", b"+0", b"-0", b"0x0", b"0 0", b"18446744073709551616")
        ),
        # Folded headers.
        _request(b"", SMUGGLED, framing=b"x: y\r\n content-length: 0\r\n"),
        _request(b"", SMUGGLED, framing=b"transfer-encoding:\r\n chunked\r\n"),
        # A line's end of one character.
        _request(b"", SMUGGLED, framing=b"x: y\ncontent-length: 0\r\n"),
        _request(b"", SMUGGLED, framing=b"x: y\rcontent-length: 0\r\n"),
        _request(b"", b"\n" + SMUGGLED, framing=b"content-length: 0\n"),
        _request().replace(b"\r\n", b"\n") + SMUGGLED,
        # Chunks.
        *(
            _request(b"", chunks + SMUGGLED, framing=b"transfer-encoding: chunked\r\n")
            for chunks in (
                b"0;a\n\r\n",
                b"0;a\rb\r\n\r\n",
                b"0\n\r\n",
                b"0\r\n\n",
                b"-0\r\n\r\n",
                b"0x0\r\n\r\n",
                b" 0\r\n\r\n",
                b"10000000000000000\r\n\r\n",
                b"1\r\nab0\r\n\r\n",
                b"0\r\ncontent-length: 9\r\n\r\n",
            )
        ),
    ],
    ids=lambda request: repr(request[120 : 120 + 110]),
)
async def test_a_body_whose_end_is_ambiguous_ends_the_connection(lasting_gateway: Gateway, request_: bytes) -> None:
    statuses = await _statuses(lasting_gateway, request_)
    assert statuses in ([], [400])
    assert _tenants(lasting_gateway) == []
    head = request_.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert await _statuses(lasting_gateway, head, request_[len(head) :]) in ([], [400])
    assert _tenants(lasting_gateway) == []


async def test_extensions_of_chunks_are_skipped(lasting_gateway: Gateway) -> None:
    body = b"%x;name=value\r\n%s\r\n" % (len(BODY), BODY) + LAST_CHUNK
    assert await _statuses(lasting_gateway, _request(b"", body, framing=b"transfer-encoding: chunked\r\n")) == [
        200,
        200,
    ]
    assert _tenants(lasting_gateway) == ["acme"]


@pytest.mark.parametrize("name", [b"authorization", b"x-genaifactory-strict", b"content-type", b"origin"])
async def test_headers_behind_a_body_have_no_effect(lasting_gateway: Gateway, name: bytes) -> None:
    values = {b"authorization": b"Bearer " + BETA.encode()}
    trailer = name + b": " + values.get(name, b"neither") + b"\r\n"
    body = _chunked(BODY) + b"0\r\n" + trailer + b"\r\n"
    request = _request(b"connection: close\r\n", body, framing=b"transfer-encoding: chunked\r\n")
    assert await _statuses(lasting_gateway, request) == [200]
    assert _tenants(lasting_gateway) == ["acme"]


async def test_what_follows_the_last_request_of_a_connection_is_not_run(lasting_gateway: Gateway) -> None:
    assert await _statuses(lasting_gateway, _request(b"connection: close\r\n") + SMUGGLED) == [200]
    assert await _statuses(lasting_gateway, _request(H2C.replace(b"Upgrade", b"close, Upgrade")) + SMUGGLED) == [200]
    assert _tenants(lasting_gateway) == ["acme"] * 2


async def test_a_tunnel_is_refused(lasting_gateway: Gateway) -> None:
    for target in (b"example.com:443", b"/healthz", b"http://127.0.0.1/healthz"):
        connect = b"CONNECT " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n"
        assert await _statuses(lasting_gateway, connect + SMUGGLED) in ([], [400])
        assert await _statuses(lasting_gateway, connect, SMUGGLED) in ([], [400])
    assert _tenants(lasting_gateway) == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_with_http_2_gets_answers_over_http_1(lasting_gateway: Gateway) -> None:
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--http2", "--write-out", "%{http_code} %{http_version}\n", "--output", "/dev/null"),
        *("--header", f"authorization: Bearer {USER}", "--header", "content-type: application/json"),
        *("--data-binary", BODY, f"{lasting_gateway.base_url}/chat/completions"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert out == b"200 1.1\n"
    await eventually(lambda: len(lasting_gateway.orchestrator.callers) == 1)
    assert _tenants(lasting_gateway) == ["acme"]
