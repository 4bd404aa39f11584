"""`genaifactory ask` with answers that break off and errors, from a real HTTP server."""

from __future__ import annotations

import json

import pytest

from genaifactory_common.errors import FactoryError, InvalidArgument, NotFound, Reason, Unavailable
from genaifactory_local import asking
from tests.unit.local.scripted_http import chunk, scripted


def _ask(url: str, conversation: str | None = None) -> tuple[asking.Answer, list[str]]:
    with asking.asked(asking.ChatRequest("Why?", url, "gf-key", conversation_id=conversation)) as (answer, pieces):
        return answer, list(pieces)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_url_may_be_the_one_that_run_prints_for_sdks(ending: str) -> None:
    with scripted(200, [chunk({"content": "16"}, "stop"), "data: [DONE]"]) as (url, _):
        answer, _ = _ask(url + ending)
    assert answer.text == "16"


def test_pieces_citations_and_usage_are_gathered() -> None:
    citation = {"number": 1, "title": "Leave", "url": "leave.md"}
    note = {"type": "url_citation", "url_citation": citation}
    lines = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "16 "}),
        chunk({"content": "days [1]"}),
        chunk({"annotations": [note, note]}, "stop"),
        'data: {"choices": [], "usage": {"completion_tokens": 3}}',
        "data: [DONE]",
    ]
    with scripted(200, lines) as (url, bodies):
        answer, pieces = _ask(url, "talk-1")
    assert pieces == ["16 ", "days [1]"]
    assert answer.text == "16 days [1]"
    assert answer.sources() == {1: citation}
    assert (answer.finish_reason, answer.usage, answer.request_id) == ("stop", {"completion_tokens": 3}, "req-1")
    assert bodies[0]["conversation_id"] == "talk-1"


def test_bytes_that_are_no_text_are_an_error_of_the_question_and_not_of_the_key() -> None:
    question = asking.ChatRequest(b"caf\xe9".decode(errors="surrogateescape"), "http://127.0.0.1:1", "gf-key")
    with pytest.raises(InvalidArgument, match="QUESTION must be text in UTF-8"), asking.asked(question):
        pass


def test_an_answer_that_breaks_off_is_an_error() -> None:
    with scripted(200, [chunk({"content": "16"})]) as (url, _), pytest.raises(Unavailable, match="broke off"):
        _ask(url)


def test_an_error_within_the_stream_is_raised_with_its_reason() -> None:
    body = {"error": {"message": "No backend.", "type": "x", "param": None, "code": "upstream_failed"}}
    lines = [chunk({"content": "16"}), "data: " + json.dumps(body)]
    with scripted(200, lines) as (url, _), pytest.raises(FactoryError, match="No backend") as raised:
        _ask(url)
    assert raised.value.reason is Reason.UPSTREAM_FAILED


def test_a_refused_request_raises_the_error_of_its_body() -> None:
    body = {"error": {"message": "No such model.", "type": "x", "param": "model", "code": "model_not_found"}}
    with scripted(404, [json.dumps(body)]) as (url, _), pytest.raises(NotFound, match="No such model") as raised:
        _ask(url)
    assert raised.value.field == "model"


def test_an_error_page_of_another_server_is_reported_with_its_status() -> None:
    with scripted(502, ["<html>Bad gateway</html>"]) as (url, _), pytest.raises(Unavailable, match="answers 502"):
        _ask(url)
