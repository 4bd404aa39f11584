"""What `genaifactory ask` makes of answers that break, from a real HTTP server that breaks them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from genaifactory_common.errors import FactoryError, NotFound, Reason, Unavailable
from genaifactory_local import asking


@contextmanager
def _server(status: int, lines: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers every POST with the lines and closes; yields its URL and the bodies that it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            self.send_header("x-request-id", "req-1")
            self.end_headers()
            self.wfile.write("".join(line + "\n\n" for line in lines).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _ask(url: str, conversation: str | None = None) -> tuple[asking.Answer, list[str]]:
    with asking.asked(asking.Question("Why?", url, "gf-key", conversation_id=conversation)) as (answer, pieces):
        return answer, list(pieces)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_may_be_the_one_that_run_prints_for_sdks(ending: str) -> None:
    with _server(200, [_chunk({"content": "16"}, "stop"), "data: [DONE]"]) as (url, _):
        answer, _ = _ask(url + ending)
    assert answer.text == "16"


def test_pieces_citations_and_usage_are_gathered() -> None:
    citation = {"number": 1, "title": "Leave", "url": "leave.md"}
    note = {"type": "url_citation", "url_citation": citation}
    lines = [
        _chunk({"role": "assistant", "content": ""}),
        _chunk({"content": "16 "}),
        _chunk({"content": "days [1]"}),
        _chunk({"annotations": [note, note]}, "stop"),
        'data: {"choices": [], "usage": {"completion_tokens": 3}}',
        "data: [DONE]",
    ]
    with _server(200, lines) as (url, bodies):
        answer, pieces = _ask(url, "talk-1")
    assert pieces == ["16 ", "days [1]"]
    assert answer.text == "16 days [1]"
    assert answer.sources() == {1: citation}
    assert (answer.finish_reason, answer.usage, answer.request_id) == ("stop", {"completion_tokens": 3}, "req-1")
    assert bodies[0]["conversation_id"] == "talk-1"


def test_an_answer_that_breaks_off_is_no_whole_answer() -> None:
    with _server(200, [_chunk({"content": "16"})]) as (url, _), pytest.raises(Unavailable, match="broke off"):
        _ask(url)


def test_an_error_in_the_midst_of_the_stream_is_raised_as_itself() -> None:
    body = {"error": {"message": "No backend.", "type": "x", "param": None, "code": "upstream_failed"}}
    lines = [_chunk({"content": "16"}), "data: " + json.dumps(body)]
    with _server(200, lines) as (url, _), pytest.raises(FactoryError, match="No backend") as raised:
        _ask(url)
    assert raised.value.reason is Reason.UPSTREAM_FAILED


def test_a_refused_request_is_raised_as_itself() -> None:
    body = {"error": {"message": "No such model.", "type": "x", "param": "model", "code": "model_not_found"}}
    with _server(404, [json.dumps(body)]) as (url, _), pytest.raises(NotFound, match="No such model") as raised:
        _ask(url)
    assert raised.value.field == "model"


def test_somebody_elses_error_page_says_so() -> None:
    with _server(502, ["<html>Bad gateway</html>"]) as (url, _), pytest.raises(Unavailable, match="answers 502"):
        _ask(url)
