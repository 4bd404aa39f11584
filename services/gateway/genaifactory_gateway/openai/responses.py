"""The response objects of OpenAI's API: completions, chunks of a stream, embeddings, models, errors."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import orjson

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors
from genaifactory_common.errors import FactoryError
from genaifactory_gateway.admission import Offer
from genaifactory_gateway.openai import opened

_NOTHING: Mapping[str, Any] = MappingProxyType({})

DONE = b"data: [DONE]\n\n"

_FINISH_REASONS = {
    types_pb2.FINISH_REASON_UNSPECIFIED: "stop",
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
    types_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    types_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def usage(tokens: types_pb2.TokenUsage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_prompt_tokens},
    }


def completion_id(request_id: str) -> str:
    """The id of a completion: that of its request with OpenAI's prefix."""
    return "chatcmpl-" + request_id.removeprefix("req-")


def _annotations(citations: Iterable[types_pb2.Citation]) -> list[dict[str, Any]]:
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": citation.start_offset,
                "end_index": citation.end_offset,
                "url": citation.uri,
                "title": citation.title,
                "number": citation.number,
                "document_id": citation.document_id,
                "passage_id": citation.passage_id,
            },
        }
        for citation in citations
    ]


def _logprob(token: types_pb2.TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}


def _logprobs(tokens: Iterable[types_pb2.TokenLogprob]) -> dict[str, Any]:
    content = [_logprob(token) | {"top_logprobs": [_logprob(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _reading(done: orchestrator_pb2.AnswerDone) -> dict[str, Any]:
    """Our own field `reading`, present only while documents are being ingested."""
    if not done.HasField("reading"):
        return {}
    return {
        "reading": {
            "documents_done": done.reading.documents_done,
            "documents_total": done.reading.documents_total,
        }
    }


class Completion:
    """Collects the events of an answer into one chat.completion."""

    def __init__(self, request_id: str, created: int, model: str, choices: int) -> None:
        self._head = {
            "id": completion_id(request_id),
            "object": "chat.completion",
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._calls: list[dict[int, dict[str, Any]]] = [{} for _ in range(choices)]
        self._logprobs: list[list[types_pb2.TokenLogprob]] = [[] for _ in range(choices)]
        self.opened = orchestrator_pb2.AnswerOpened()
        """What was known when the answer began."""

    async def collect(self, events: AsyncIterable[orchestrator_pb2.AnswerResponse]) -> orchestrator_pb2.AnswerDone:
        """Adds all events, of which the last is done; returns that one."""
        async for event in events:
            self.add(event)
            if event.HasField("done"):
                return event.done
        raise AssertionError("an answer ends with done, or with an error")

    def add(self, event: orchestrator_pb2.AnswerResponse) -> None:
        """Adds the next event."""
        if event.HasField("opened"):
            self.opened = event.opened
            self._head |= opened.fields(event.opened)
        match event.WhichOneof("event"):
            case "delta":
                self._texts[event.delta.choice].append(event.delta.text)
                self._logprobs[event.delta.choice].extend(event.delta.logprobs)
            case "tool_call":
                self._add_call(event.tool_call)

    def _add_call(self, delta: orchestrator_pb2.ToolCallDelta) -> None:
        piece = delta.tool_call
        call = self._calls[delta.choice].setdefault(
            piece.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = call["id"] or piece.id
        call["function"]["name"] = call["function"]["name"] or piece.name
        call["function"]["arguments"] += piece.arguments_json

    def body(self, done: orchestrator_pb2.AnswerDone) -> bytes:
        """The whole object as JSON."""
        return orjson.dumps(
            self._head
            | {
                "choices": [self._choice(index, done) for index in range(len(self._texts))],
                "usage": usage(done.usage),
            }
            | _reading(done)
        )

    def _choice(self, index: int, done: orchestrator_pb2.AnswerDone) -> dict[str, Any]:
        text = "".join(self._texts[index])
        calls = self._calls[index]
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [calls[position] for position in sorted(calls)]
        # The contract has citations of the first choice only.
        message["annotations"] = _annotations(done.citations) if index == 0 else []
        logprobs = self._logprobs[index]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(logprobs) if logprobs else None,
            "finish_reason": _finish_reason(done, index),
        }


class Chunks:
    """Writes the events of an answer as chat.completion.chunk events of a server-sent stream."""

    def __init__(self, request_id: str, created: int, model: str, choices: int, *, include_usage: bool) -> None:
        head = {
            "id": completion_id(request_id),
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        # All of a chunk but its text is the same for a whole stream, so it is serialised once.
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._text_heads = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)]
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._include_usage = include_usage
        self._choices = choices

    def opening(self, known: orchestrator_pb2.AnswerOpened) -> bytes:
        """The first chunk of every choice: the role, with the fields of `opened`."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, delta, None, None, opened.fields(known)) for index in range(self._choices))

    def event(self, event: orchestrator_pb2.AnswerResponse) -> bytes:
        """The chunk of one event; empty for an event that is not for clients."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            delta = event.delta
            if not delta.logprobs:
                return self._text_heads[delta.choice] + orjson.dumps(delta.text) + self._text_tail
            return self._chunk(delta.choice, {"content": delta.text}, _logprobs(delta.logprobs), None)
        if kind == "tool_call":
            piece = event.tool_call.tool_call
            call: dict[str, Any] = {"index": piece.index}
            if piece.id:
                call |= {"id": piece.id, "type": "function"}
            call["function"] = ({"name": piece.name} if piece.name else {}) | {"arguments": piece.arguments_json}
            return self._chunk(event.tool_call.choice, {"tool_calls": [call]}, None, None)
        return b""

    def closing(self, done: orchestrator_pb2.AnswerDone) -> bytes:
        """The last chunk of every choice, the usage if requested, and [DONE]."""
        parts = []
        for index in range(self._choices):
            annotations = _annotations(done.citations) if index == 0 else []
            delta = {"annotations": annotations} if annotations else {}
            parts.append(self._chunk(index, delta, None, _finish_reason(done, index), _reading(done)))
        if self._include_usage:
            parts.append(self._head + b'],"usage":' + orjson.dumps(usage(done.usage)) + b"}\n\n")
        parts.append(DONE)
        return b"".join(parts)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish_reason: str | None,
        more: Mapping[str, Any] = _NOTHING,
    ) -> bytes:
        """more: further fields of the chunk."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        fields = b"," + orjson.dumps(dict(more))[1:-1] if more else b""
        return self._head + orjson.dumps(choice) + b"]" + fields + self._tail[1:]


def error_body(error: FactoryError) -> bytes:
    """The JSON of an error."""
    return orjson.dumps(errors.openai_body(error))


def error_event(error: FactoryError) -> bytes:
    """An error within a stream, after which the stream ends without [DONE]."""
    return b"data: " + error_body(error) + b"\n\n"


def embeddings(
    vectors: Sequence[orchestrator_pb2.Embedding], model: str, tokens: int, *, as_base64: bool
) -> Iterator[bytes]:
    """The JSON of the embeddings, in one piece per vector, since the whole may be large."""
    yield b'{"object":"list","data":['
    for index, vector in enumerate(vectors):
        values = array("f", vector.values)
        if as_base64:
            if sys.byteorder == "big":
                values.byteswap()
            embedding = b'"' + base64.b64encode(values.tobytes()) + b'"'
        else:
            embedding = orjson.dumps(values.tolist())
        comma = b"," if index else b""
        yield comma + b'{"object":"embedding","index":%d,"embedding":' % index + embedding + b"}"
    yield b'],"model":' + orjson.dumps(model) + b',"usage":'
    yield orjson.dumps({"prompt_tokens": tokens, "total_tokens": tokens}) + b"}"


def model_object(offer: Offer, created: int) -> dict[str, Any]:
    """OpenAI's model object, with our `task`, `description` and `vision`."""
    return {
        "id": offer.name,
        "object": "model",
        "created": created,
        "owned_by": "genaifactory",
        "task": offer.task,
        "description": offer.description,
        "vision": offer.vision,
    }


def _finish_reason(done: orchestrator_pb2.AnswerDone, index: int) -> str:
    reasons = done.finish_reasons
    return _FINISH_REASONS[reasons[index]] if index < len(reasons) else "stop"
