"""Clients that disconnect, read slowly, write slowly or send no HTTP; and the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory_common.testing import orchestrator as script
from genaifactory_gateway.http.observation import HTTP_HANGUPS
from genaifactory_gateway.openai.responses import Chunks
from genaifactory_gateway.settings import Http
from tests.unit.gateway.conftest import Gateway, Start

Result = TypeVar("Result")

QUESTION = {"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}


async def _connect(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gateway.address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 20)


def _request(body: object, *, key: str = "sk-acme-user", extra: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n{extra}\r\n"
    )
    return head.encode() + content


async def _within(awaitable: Awaitable[Result]) -> Result:
    """The result; fails the test after a timeout."""
    async with asyncio.timeout(10):
        return await awaitable


async def test_a_disconnect_within_a_stream_cancels_the_work_at_once(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Xin "), asyncio.Event()]
    reader, writer = await _connect(gateway)
    writer.write(_request(QUESTION | {"stream": True}))
    await _within(reader.readuntil(b'"Xin "'))
    writer.transport.abort()
    await _within(gateway.orchestrator.cancelled.wait())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_before_the_first_text_cancels_the_work_at_once(gateway: Gateway, stream: bool) -> None:
    gateway.orchestrator.script = [script.route(), asyncio.Event()]
    _, writer = await _connect(gateway)
    writer.write(_request(QUESTION | {"stream": stream}))
    await _within(gateway.orchestrator.started.wait())
    writer.close()
    await _within(gateway.orchestrator.cancelled.wait())


async def test_a_client_that_disconnects_is_charged_for_the_delivered_text(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("x" * 4000), asyncio.Event()]
    reader, writer = await _connect(gateway)
    writer.write(_request(QUESTION | {"stream": True, "max_tokens": 2000}, key="sk-beta-user"))
    await _within(reader.readuntil(b"x" * 4000))
    writer.transport.abort()
    await _within(gateway.orchestrator.cancelled.wait())
    gateway.orchestrator.script = [script.done()]
    response = await gateway.chat("sk-beta-user", max_tokens=1)
    assert response.headers["x-ratelimit-remaining-tokens"] == "1985"  # 3000 less 1007 delivered and 8 reserved now


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_text_is_charged_for_its_prompt(
    gateway: Gateway, stream: bool
) -> None:
    gateway.orchestrator.script = [script.route(), asyncio.Event()]
    long = {"model": "chat", "messages": [{"role": "user", "content": "?" * 8000}], "max_tokens": 5, "stream": stream}
    _, writer = await _connect(gateway)
    writer.write(_request(long, key="sk-beta-user"))
    await _within(gateway.orchestrator.started.wait())
    writer.close()
    await _within(gateway.orchestrator.cancelled.wait())
    response = await gateway.get("/v1/models", key="sk-beta-user")
    assert response.headers["x-ratelimit-remaining-tokens"] in ("991", "996")  # the 5 are given back with the settling
    assert (await gateway.chat("sk-beta-user", messages=long["messages"])).status_code == 429


async def test_a_reader_that_reads_nothing_slows_the_work_and_is_then_disconnected(start: Start) -> None:
    async with start(http=Http(write_timeout_seconds=0.3)) as gateway:
        pieces = 5_000
        gateway.orchestrator.script = [*[script.delta("x" * 10_000)] * pieces, script.done()]
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION | {"stream": True}))  # and nothing is read
        await _within(gateway.orchestrator.cancelled.wait())
        assert gateway.orchestrator.sent < pieces
        with contextlib.suppress(ConnectionError):
            while await _within(reader.read(1 << 20)):  # what was under way, and then the end of the connection
                pass
        writer.close()


async def test_a_client_that_sends_requests_and_reads_no_responses_is_disconnected(start: Start) -> None:
    async with start(http=Http(write_timeout_seconds=0.3)) as gateway:
        gateway.orchestrator.script = [*[script.delta("x" * 1_000_000)] * 12, script.done()]
        hangups = _hangups()
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION) * 3)  # the first answer fills every buffer, the next cannot begin
        await _within(_hung_up(hangups + 1))
        with contextlib.suppress(ConnectionError):
            while await _within(reader.read(1 << 20)):
                pass
        writer.close()
        assert len(gateway.orchestrator.requests) < 3


async def _hung_up(count: float) -> None:
    while _hangups() < count:  # noqa: ASYNC110  # what operators see has no event
        await asyncio.sleep(0.01)


def _hangups() -> float:
    samples = [sample for metric in HTTP_HANGUPS.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


async def test_a_client_that_pipelines_too_many_requests_is_disconnected(gateway: Gateway) -> None:
    gateway.orchestrator.script = [asyncio.Event()]
    reader, writer = await _connect(gateway)
    writer.write(_request(QUESTION) * 40)
    with contextlib.suppress(ConnectionError):
        assert await _within(reader.read()) == b""
    writer.close()
    assert len(gateway.orchestrator.requests) <= 1


async def test_a_disconnect_cancels_the_running_request_of_a_pipeline(gateway: Gateway) -> None:
    gateway.orchestrator.script = [asyncio.Event()]
    _, writer = await _connect(gateway)
    writer.write(_request(QUESTION) * 3)
    await _within(gateway.orchestrator.started.wait())
    writer.transport.abort()
    await _within(gateway.orchestrator.cancelled.wait())
    assert len(gateway.orchestrator.requests) == 1


async def test_a_running_stream_finishes_while_the_gateway_stops(start: Start) -> None:
    go_on = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(start(drain_seconds=10))
        gateway.orchestrator.script = [script.delta("Xin "), go_on, script.delta("chào."), script.done()]
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION | {"stream": True}))
        await _within(reader.readuntil(b'"Xin "'))
        stopping = asyncio.create_task(stack.pop_all().aclose())
        await _within(_refuses_connections(gateway))
        go_on.set()
        rest = await _within(reader.read())
        assert b'"ch\xc3\xa0o."' in rest
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await _within(stopping)
        writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """One question and the head of its answer, on a connection that may be used again."""
    writer.write(_request(QUESTION))
    head = await _within(reader.readuntil(b"\r\n\r\n"))
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    await _within(reader.readexactly(length))
    assert head.startswith(b"HTTP/1.1 200")
    return bytes(head.lower())


async def test_a_gateway_that_stops_answers_once_more_on_open_and_new_connections(
    start: Start,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(start(http=Http(linger_seconds=5), drain_seconds=20))
        kept = await _connect(gateway)
        assert b"connection: close" not in await _ask(*kept)
        stopping = asyncio.create_task(stack.pop_all().aclose())
        await asyncio.sleep(0.3)
        new = await _connect(gateway)
        assert b"connection: close" in await _ask(*kept)
        assert b"connection: close" in await _ask(*new)
        for reader, writer in (kept, new):
            assert await _within(reader.read()) == b""
            writer.close()
        began = asyncio.get_running_loop().time()
        await _within(stopping)
        assert asyncio.get_running_loop().time() - began < 4  # it waits for connections, not for the whole time


async def test_an_idle_connection_does_not_delay_the_shutdown(start: Start) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(start(http=Http(linger_seconds=0.5), drain_seconds=20))
        reader, writer = await _connect(gateway)
        await _ask(reader, writer)
        await _within(stack.pop_all().aclose())
        assert await _within(reader.read()) == b""
        writer.close()


async def test_an_old_connection_is_closed_with_its_next_response(start: Start) -> None:
    async with start(http=Http(max_connection_age_seconds=0.5)) as gateway:
        connection = await _connect(gateway)
        assert b"connection: close" not in await _ask(*connection)
        await asyncio.sleep(0.6)
        assert b"connection: close" in await _ask(*connection)
        connection[1].close()


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error(start: Start) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(start(drain_seconds=1))
        gateway.orchestrator.script = [script.delta("Xin "), asyncio.Event()]
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION | {"stream": True}))
        await _within(reader.readuntil(b'"Xin "'))
        stopping = asyncio.create_task(stack.pop_all().aclose())
        rest = await _within(reader.read())
        assert b'"code":"unavailable"' in rest
        assert b"[DONE]" not in rest
        await _within(stopping)
        writer.close()


async def _refuses_connections(gateway: Gateway) -> None:
    while True:
        try:
            _, writer = await _connect(gateway)
        except OSError:
            return
        writer.close()
        await asyncio.sleep(0)


async def test_a_body_that_does_not_arrive_times_out(start: Start) -> None:
    async with start(http=Http(body_timeout_seconds=0.1)) as gateway:
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION)[:-5])
        answer = await _within(reader.read())  # closed: the rest of the body may be read as a request
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        writer.close()


async def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(start: Start) -> None:
    async with start(http=Http(max_body_bytes=2000)) as gateway:
        reader, writer = await _connect(gateway)
        head, _, _ = _request(QUESTION).partition(b"content-length")
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"1\r\nx\r\n")  # and it never ends
        assert (await _within(reader.readline())).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_the_connection_of_a_refused_body_serves_the_next_request(start: Start) -> None:
    async with start(http=Http(max_body_bytes=2000)) as gateway:
        reader, writer = await _connect(gateway)
        writer.write(_request(QUESTION | {"user": "x" * 500_000}) + _request(QUESTION))
        for status in (b"413", b"200"):
            head = await _within(reader.readuntil(b"\r\n\r\n"))
            assert head.startswith(b"HTTP/1.1 " + status)
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()


@pytest.mark.parametrize("begin", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "])
async def test_a_connection_whose_headers_do_not_arrive_is_closed(start: Start, begin: bytes) -> None:
    async with start(http=Http(header_timeout_seconds=0.1)) as gateway:
        reader, writer = await _connect(gateway)
        writer.write(begin)
        with contextlib.suppress(ConnectionResetError):
            assert await _within(reader.read()) == b""
        writer.close()


async def test_endless_headers_are_refused(start: Start) -> None:
    async with start(http=Http(max_header_bytes=2000)) as gateway:
        reader, writer = await _connect(gateway)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"x-more: " + b"x" * 100 + b"\r\n")
                await writer.drain()
        answer = await _within(reader.read(4096))
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"at most 2000 bytes" in answer
        writer.close()


async def test_malformed_http_gets_the_platforms_error_body(gateway: Gateway) -> None:
    reader, writer = await _connect(gateway)
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    answer = await _within(reader.read())
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    writer.close()


async def test_connections_beyond_the_bound_are_closed(start: Start) -> None:
    async with start(http=Http(max_connections=2)) as gateway:
        held = [await _connect(gateway) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        for reader, _ in held:
            assert (await _within(reader.readline())).startswith(b"HTTP/1.1 200")
        reader, writer = await _connect(gateway)
        with contextlib.suppress(ConnectionResetError):
            assert await _within(reader.read()) == b""
        for _, other in [*held, (reader, writer)]:
            other.close()


@given(st.lists(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), max_size=20), st.booleans())
def test_a_streams_text_is_the_same_however_it_was_cut(pieces: list[str], include_usage: bool) -> None:
    chunks = Chunks("req-" + "0" * 32, 1, 'a "model"', 1, include_usage=include_usage)
    data = chunks.opening(orchestrator_pb2.AnswerOpened()) + b"".join(
        chunks.event(script.delta(piece)) for piece in pieces
    )
    data += chunks.closing(script.done().done)
    assert data.endswith(b"\n\n")
    events = data[:-2].split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    assert events.pop() == b"data: [DONE]"
    objects = [json.loads(event[6:]) for event in events]
    assert all(o["model"] == 'a "model"' and o["object"] == "chat.completion.chunk" for o in objects)
    texts = [o["choices"][0]["delta"].get("content", "") for o in objects if o["choices"]]
    assert "".join(texts) == "".join(pieces)
    assert (objects[-1].get("usage") is not None) == include_usage
