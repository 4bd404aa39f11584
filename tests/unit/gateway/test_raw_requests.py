"""Requests that no HTTP library sends, on a raw socket: each gets one clear response or a closed connection."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tests.unit.gateway.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /healthz HTTP/1.1\r\n"
HOST = b"host: x\r\n"


async def _answer(gateway: Gateway, request: bytes) -> bytes:
    """The bytes received until the gateway closes the connection, or up to the end of the first response."""
    host, _, port = gateway.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(request)
    answer = b""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            answer += await reader.readexactly(int(length.partition(b":")[2]))
    writer.close()
    return answer


def _error(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"])


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (b"", "must have one header Host; it has 0"),
        (b"x-host: x\r\n", "must have one header Host; it has 0"),
        (HOST + b"Host: y\r\n", "must not have more than one header Host; it has 2"),
        (HOST + b"x-more: " + b"x" * 54_000 + b"\r\n", "at most 32768 bytes"),
        (HOST + b"x: y\r\n" * 8_000, "at most 32768 bytes"),
        (HOST + b"no colon\r\n", "Invalid HTTP"),
        (HOST + b"content-length: -1\r\n", "Invalid HTTP"),
        (HOST + b"content-length: 1\r\ncontent-length: 2\r\n", "Invalid HTTP"),
        (HOST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n", "Invalid HTTP"),
        *(
            (HOST + b"%s: a\r\n%s: b\r\n" % (name, name.lower()), f"must not have more than one header {name.decode()}")
            for name in (b"Authorization", b"Origin", b"Content-Type", b"Content-Encoding", b"Traceparent")
        ),
        (HOST + b"authorization: a\r\nauthorization: a\r\n", "more than one header Authorization; it has 2"),
        (HOST + b"a\x00b: c\r\n", "Invalid HTTP"),
        (HOST + b"x: a\x00b\r\n", "Invalid HTTP"),
        (HOST + b"x: a\nb\r\n", "Invalid HTTP"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
async def test_wrong_headers_are_refused_with_the_platforms_error_body(
    lasting_gateway: Gateway, headers: bytes, says: str
) -> None:
    answer = await _answer(lasting_gateway, GET + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert says in _error(answer)


@pytest.mark.parametrize(
    "framing",
    [
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: identity\r\n",
        b"transfer-encoding:\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"transfer-encoding: xchunked\r\ncontent-length: 4\r\n",
        b"content-length: 4\r\ntransfer-encoding: xchunked\r\n",
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_a_body_with_ambiguous_framing_is_refused_with_a_response(
    lasting_gateway: Gateway, method: bytes, framing: bytes
) -> None:
    head = method + b" /v1/chat/completions HTTP/1.1\r\n" + HOST + b"content-type: application/json\r\n"
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await _answer(lasting_gateway, head + framing + b"\r\n" + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"connection: close" in answer
    assert "Transfer-Encoding" in _error(answer) or "Invalid HTTP" in _error(answer)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1",
        b"GET http://[ HTTP/1.1",
        b"GET /\xff\xfe HTTP/1.1",
        b"GET  HTTP/1.1",
        b"GET /healthz HTTP/9.9",
        b"PRI * HTTP/2.0",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT example.com:443 HTTP/1.1",
        b"G\x00T / HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-OpenSSH_9.2",
    ],
    ids=lambda line: repr(line[:40]),
)
async def test_a_wrong_request_line_is_refused(lasting_gateway: Gateway, request_line: bytes) -> None:
    answer = await _answer(lasting_gateway, request_line + b"\r\n" + HOST + b"\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), answer
    assert _error(answer)


async def test_an_old_client_without_a_host_is_served(lasting_gateway: Gateway) -> None:
    assert (await _answer(lasting_gateway, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_headers_within_the_bound_are_accepted_in_any_pieces(lasting_gateway: Gateway) -> None:
    request = GET + HOST + b"x-more: " + b"x" * 32_000 + b"\r\n\r\n"
    assert (await _answer(lasting_gateway, request)).startswith(b"HTTP/1.1 200 ")


async def test_a_wrong_request_behind_a_good_one_never_mixes_with_its_answer(lasting_gateway: Gateway) -> None:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "?"}]}).encode()
    good = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer sk-acme-user\r\ncontent-length: %d\r\n\r\n" % len(body)
    ) + body
    answer = await _answer(lasting_gateway, good + GET + b"x: " + b"x" * 54_000 + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")
    assert b"400 Bad Request" not in answer


async def test_the_gateway_still_serves_after_malformed_requests(lasting_gateway: Gateway) -> None:
    assert (await lasting_gateway.get("/healthz")).status_code == 200
