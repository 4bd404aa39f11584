"""A scripted OpenAI-compatible API on loopback, with failures of every kind, that records its requests.

    script = [openai_upstream.failure(500), openai_upstream.answer("Xin", " chào")]
    async with openai_upstream.serve(script) as upstream:
        ...  # call upstream.base_url
        assert upstream.requests[0].body["model"] == "m"

Each request gets the next reply; all further requests get the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Step(Enum):
    """Steps of a reply besides sending bytes."""

    HANG = "hang"
    """Send nothing more, until the client disconnects."""
    RESET = "reset"
    """Reset the connection (TCP RST)."""
    CLOSE = "close"
    """Close the connection without the end of the body."""


@dataclass(frozen=True)
class Wait:
    """Waits until the event is set, or the client disconnects."""

    event: asyncio.Event


Steps = tuple[bytes | Step | Wait, ...]


@dataclass(frozen=True)
class Reply:
    """One response. `early` comes before the status line, where only Step and Wait make sense."""

    steps: Steps = ()
    status: int = 200
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    early: Steps = ()


@dataclass
class Seen:
    """A received request."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client has disconnected before the end of the reply."""


@dataclass
class Upstream:
    """The running API."""

    base_url: str
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    """Connections opened so far."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each request."""


def chunk(delta: Mapping[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream. more: further fields of the choice, such as logprobs."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **more}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


def event(body: Any) -> bytes:
    """A JSON value as one event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def text(*texts: str) -> Steps:
    """The events of some pieces of text."""
    return (chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in texts))


def ending(finish: str = "stop", usage: tuple[int, int] | None = (10, 5)) -> Steps:
    """The end of a stream. usage: prompt and completion tokens."""
    counts = usage and event(
        {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}}
    )
    return (chunk(finish=finish), *((counts,) if counts else ()), b"data: [DONE]\n\n")


def answer(*texts: str, finish: str = "stop", usage: tuple[int, int] | None = (10, 5)) -> Reply:
    """A complete answer, one event for each text."""
    return Reply((*text(*texts), *ending(finish, usage)))


def failure(
    status: int, *, code: str | None = None, message: str = "upstream says no", param: str | None = None, **headers: str
) -> Reply:
    """An error response. headers: with _ for -, as retry_after="1"."""
    error = {"error": {"message": message, "type": "error", "param": param, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply((json.dumps(error).encode(),), status, "application/json", named)


def json_reply(body: Any) -> Reply:
    """A successful response that is no stream."""
    return Reply((json.dumps(body).encode(),), content_type="application/json")


def embeddings(*vectors: Sequence[float], prompt_tokens: int = 7) -> Reply:
    """A successful embeddings response."""
    data = [{"object": "embedding", "index": i, "embedding": list(vector)} for i, vector in enumerate(vectors)]
    return json_reply({"object": "list", "data": data, "usage": {"prompt_tokens": prompt_tokens}})


@asynccontextmanager
async def serve(replies: Sequence[Reply]) -> AsyncIterator[Upstream]:
    """Serves the script on a free port of loopback."""
    upstream = Upstream("")
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        upstream.connections += 1
        try:
            await _converse(upstream, replies, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has disconnected, or the test has ended
        finally:
            conversations.discard(task)
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(conversations):
            task.cancel()
        await asyncio.gather(*conversations)


async def _converse(
    upstream: Upstream, replies: Sequence[Reply], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(head[0].split(" ")[1], headers, json.loads(body or b"{}"))
        upstream.requests.append(seen)
        upstream.asked.set()
        reply = replies[min(len(upstream.requests), len(replies)) - 1]
        # The client does not pipeline, so anything to read, the end included, means that it has disconnected.
        leaving = asyncio.create_task(reader.read(1))
        try:
            if not await _send(reply, writer, leaving):
                return
        except ConnectionError:
            seen.left.set()
            return
        finally:
            if leaving.done():
                seen.left.set()
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await leaving


async def _send(reply: Reply, writer: asyncio.StreamWriter, leaving: asyncio.Task[bytes]) -> bool:
    """Whether the connection can serve another request."""
    for step in reply.early:
        if not await _play(step, writer, leaving):
            return False
    head = f"HTTP/1.1 {reply.status} X\r\ncontent-type: {reply.content_type}\r\ntransfer-encoding: chunked\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    writer.write(head.encode() + b"\r\n")
    for step in reply.steps:
        if not await _play(step, writer, leaving):
            return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def _play(step: bytes | Step | Wait, writer: asyncio.StreamWriter, leaving: asyncio.Task[bytes]) -> bool:
    if isinstance(step, bytes):
        if step:
            writer.write(b"%x\r\n%b\r\n" % (len(step), step))
            await writer.drain()
        return True
    if isinstance(step, Wait):
        waiting = asyncio.create_task(step.event.wait())
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return not leaving.done()
    await writer.drain()
    if step is Step.HANG:
        await leaving
    elif step is Step.RESET:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return False
