"""Sends a question to a platform's OpenAI API and reads the streamed answer: `genaifactory ask`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from genaifactory_common.errors import (
    TABLE,
    FactoryError,
    InvalidArgument,
    Reason,
    Unauthenticated,
    Unavailable,
)

_CONNECT_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class ChatRequest:
    """A question, and the platform and key that it is sent with."""

    text: str
    url: str
    """Of the platform, with or without the /v1 of its OpenAI API: http://127.0.0.1:8080."""
    key: str
    route: str = "rag"
    conversation_id: str | None = None
    fresh: bool = False
    """The answer may not come from the cache."""
    idle_timeout_seconds: float = 120.0
    """Longest time without any data."""


@dataclass
class Answer:
    """The answer so far; complete when the stream has ended."""

    request_id: str = ""
    text: str = ""
    citations: list[dict[str, Any]] = field(default_factory=list)
    """As OpenAI's url_citation: number, title, url, document_id, passage_id, start_index, end_index."""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, int] = field(default_factory=dict)
    """Progress of reading documents while it goes on: documents_done, documents_total."""
    cache: str = ""
    """hit, miss or bypass; empty when the platform does not report it."""
    masked: dict[str, int] = field(default_factory=dict)
    """Entity type -> count of what a guardrail masked in the question."""

    def sources(self) -> dict[int, dict[str, Any]]:
        """The cited passages by their number, each once."""
        return {int(citation["number"]): citation for citation in reversed(self.citations)}


@contextmanager
def asked(question: ChatRequest) -> Iterator[tuple[Answer, Iterator[str]]]:
    """Sends the question; yields the answer, which is filled by iterating over its text. Raises FactoryError."""
    for option, text in (
        ("QUESTION", question.text),
        ("--route", question.route),
        ("--conversation", question.conversation_id or ""),
    ):
        _require_text(option, text)
    body: dict[str, Any] = {
        "model": question.route,
        "messages": [{"role": "user", "content": question.text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if question.conversation_id:
        body["conversation_id"] = question.conversation_id
    timeout = httpx2.Timeout(question.idle_timeout_seconds, connect=_CONNECT_TIMEOUT_SECONDS)
    with (
        reaching(question.url),
        httpx2.Client(timeout=timeout, trust_env=False) as client,
        client.stream(
            "POST",
            f"{question.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {question.key}"}
            | ({"Cache-Control": "no-cache"} if question.fresh else {}),
        ) as response,
    ):
        if response.status_code != httpx2.codes.OK:
            response.read()
            raise refusal(response)
        answer = Answer(response.headers.get("x-request-id", ""))
        yield answer, _pieces(response, answer)


def _require_text(option: str, text: str) -> None:
    """Bytes of a command line that are not UTF-8 arrive as surrogates, which a request cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"{option} must be text in UTF-8; it holds a byte that is not. Set the terminal to UTF-8.", field=option
        ) from None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Around a request to a platform: translates errors of the HTTP client into FactoryError."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise InvalidArgument(f"'{url}' is not an http:// or https:// address.", field="--url") from None
    except (httpx2.LocalProtocolError, UnicodeEncodeError):
        raise Unauthenticated("The key holds characters that no key has.", field="--key") from None
    except httpx2.HTTPError as error:
        raise Unavailable(f"{url} does not answer ({type(error).__name__}).", field="--url") from None


def refusal(response: httpx2.Response) -> FactoryError:
    """The error in a response that is not 200."""
    body = _object(response.text)
    if "error" in body:
        return _from_body(body)
    return Unavailable(f"{response.url.host} answers {response.status_code}; is it a GenAI Factory?", field="--url")


def _pieces(response: httpx2.Response, answer: Answer) -> Iterator[str]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data == line or not data:
            continue
        if data == "[DONE]":
            return
        chunk = _object(data)
        if "error" in chunk:
            raise _from_body(chunk)
        answer.usage = chunk.get("usage") or answer.usage
        answer.reading = chunk.get("reading") or answer.reading
        answer.cache = chunk.get("cache", answer.cache)
        answer.masked |= {each["entity_type"]: each["count"] for each in chunk.get("masked", ())}
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            answer.citations += [note["url_citation"] for note in delta.get("annotations", ())]
            if piece := delta.get("content"):
                answer.text += piece
                yield piece
    raise Unavailable("The answer broke off; ask again.")


def _from_body(body: dict[str, Any]) -> FactoryError:
    detail = body["error"]
    code = str(detail.get("code")).upper()
    reason = Reason(code) if code in TABLE else Reason.INTERNAL
    return TABLE[reason].error(str(detail.get("message")), field=detail.get("param"), reason=reason)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
