"""One line of a batch's file: read and checked as the HTTP request that it stands for, and answered as that."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from genaifactory.types.v1 import types_pb2
from genaifactory_common import batch_lines, conversation, errors
from genaifactory_common.errors import FactoryError, InvalidArgument, TooLarge
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.openai import embedding, fields, requests, responses
from genaifactory_gateway.openai.content import Body
from genaifactory_gateway.upstream import Upstream

RPCS = {batch_lines.CHAT: "Chat", batch_lines.EMBEDDINGS: "Embed"}
"""The gateway's method for a request of each endpoint: what its key must be allowed to call."""
_KINDS: dict[str, type[requests.ChatCompletion | requests.Embeddings]] = {
    batch_lines.CHAT: requests.ChatCompletion,
    batch_lines.EMBEDDINGS: requests.Embeddings,
}
# Names a request that is checked and not sent.
_NO_REQUEST = "req-" + "0" * 32


class _Line(Body):
    """One line of a file."""

    lenient: ClassVar[bool] = False
    max_values: ClassVar[int] = requests.Embeddings.max_values

    custom_id: str = Field(min_length=1, max_length=batch_lines.MAX_CUSTOM_ID_CHARACTERS)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A request of a batch."""

    custom_id: str
    model: str
    body: bytes
    """JSON, as POST of the batch's endpoint accepts it."""


@dataclass(frozen=True)
class Answer:
    """The response to a request."""

    body: bytes
    """JSON."""
    usage: types_pb2.TokenUsage
    cost_micros: int
    currency: str


def parse(line: bytes, endpoint: str) -> Request:
    """The request of a line. Raises InvalidArgument with the path of the first wrong field, and TooLarge."""
    found, _ = fields.read(_Line, line, strict=True)
    if found.url != endpoint:
        raise InvalidArgument(f"'url' must be the endpoint of the batch, {endpoint}.", field="url")
    # Not by orjson, which refuses integers that the check must name.
    data = json.dumps(found.body, ensure_ascii=False, separators=(",", ":")).encode()
    try:
        if len(data) > batch_lines.MAX_BODY_BYTES:  # numbers may be longer than they were sent
            raise TooLarge(f"'body' has more than {batch_lines.MAX_BODY_BYTES} bytes as JSON.")
        body = _body(data, endpoint)
        if isinstance(body, requests.ChatCompletion):
            if body.stream:
                raise InvalidArgument("A batch has no streams; leave 'stream' out.", field="stream")
            requests.answer_request(body, _NO_REQUEST)
        else:
            conversation.check_texts(body.texts(), "input")
    except FactoryError as error:
        error.field = f"body.{error.field}" if error.field else "body"
        raise
    return Request(found.custom_id, body.model, data)


async def lines(content: AsyncIterable[bytes]) -> AsyncGenerator[tuple[int, bytes], None]:
    """The lines that are not blank, with their numbers from 1. Raises TooLarge for a long line, and for many lines."""
    held, number = bytearray(), 0
    async for piece in content:
        held += piece
        _check_count(number + held.count(b"\n"))  # before they are split: a piece may hold a million
        *whole, rest = held.split(b"\n")
        held = bytearray(rest)
        for line in whole:
            number += 1
            _check_length(line, number)
            if line.strip():
                yield number, bytes(line)
        _check_length(held, number + 1)
    if held.strip():
        _check_count(number + 1)
        yield number + 1, bytes(held)


def _check_count(number: int) -> None:
    if number > batch_lines.MAX_LINES:
        raise TooLarge(
            f"The file has more than {batch_lines.MAX_LINES} lines, blank ones included. Split it.",
            field="input_file_id",
        )


def _check_length(line: bytearray, number: int) -> None:
    if len(line) > batch_lines.MAX_BODY_BYTES:
        raise TooLarge(f"Line {number} has more than {batch_lines.MAX_BODY_BYTES} bytes.", field="line")


async def answer(entry: Entry, to: Upstream, endpoint: str, data: bytes) -> Answer:
    """The answer to a request that `parse` has accepted, as HTTP gives it. Raises FactoryError."""
    body = _body(data, endpoint)
    try:
        if isinstance(body, requests.Embeddings):
            vectors = await embedding.embed(entry, to, body)
            written = b"".join(embedding.pieces(vectors, body))
            return Answer(written, vectors.usage, vectors.cost_micros, vectors.currency)
        route = entry.route(body.model)
        request = requests.answer_request(body, entry.request_id)
        completion = responses.Completion(entry.request_id, int(time.time()), body.model, body.n or 1)
        async with aclosing(to.answer(entry, route, request)) as events:
            done = await completion.collect(events)
        return Answer(completion.body(done), done.usage, done.cost_micros, done.currency)
    except FactoryError as error:
        error.field = requests.named_as_sent(error.field, body)
        raise


def result(
    batch_id: str, number: int, custom_id: str, request_id: str, outcome: Answer | FactoryError
) -> tuple[bytes, bool]:
    """The line of the file of results for what HTTP would have responded, and whether that is an error."""
    failed = isinstance(outcome, FactoryError)
    status = errors.http_status(outcome) if isinstance(outcome, FactoryError) else 200
    body = responses.error_body(outcome) if isinstance(outcome, FactoryError) else outcome.body
    response = b'{"status_code": %d, "request_id": %s, "body": %s}' % (status, orjson.dumps(request_id), body)
    line = batch_lines.result(batch_id, number, custom_id, response=response)
    if len(line) <= batch_lines.MAX_RESULT_BYTES or failed:
        return line, failed
    too_large = TooLarge(f"The answer has more than {batch_lines.MAX_RESULT_BYTES} bytes; ask for less in one request.")
    return result(batch_id, number, custom_id, request_id, too_large)


def _body(data: bytes, endpoint: str) -> requests.ChatCompletion | requests.Embeddings:
    body, _ = fields.read(_KINDS[endpoint], data, strict=False)
    return body
