"""Which answers pass `genaifactory smoke`, from a real HTTP server with scripted answers."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory_common.errors import DeadlineExceeded, FactoryError, Unavailable
from genaifactory_local import asking, smoke
from tests.unit.local.scripted_http import chunk, scripted

NOTE = {"type": "url_citation", "url_citation": {"number": 1, "title": "Leave", "url": "sample/leave.md"}}
CITED = [chunk({"content": "16 days [1]"}), chunk({"annotations": [NOTE]}, "stop"), "data: [DONE]"]
UNCITED = [chunk({"content": "16 days"}, "stop"), "data: [DONE]"]


def _smoke(lines: list[str], **options: Any) -> list[str]:
    printed: list[str] = []
    with scripted(200, lines) as (url, _):
        question = asking.ChatRequest("How many days?", url, "gf-key", idle_timeout_seconds=0.3)
        smoke.test(question, printed.append, **{"timeout_seconds": 30, "needs_citation": True, **options})
    return printed


def test_a_cited_answer_passes_and_is_shown_with_its_time() -> None:
    printed = _smoke(CITED)
    assert printed[:3] == ["Question  How many days?", "Answer    16 days [1]", "      [1] Leave (sample/leave.md)"]
    assert printed[3].startswith("Time      0.")


def test_an_answer_without_a_citation_passes_only_where_none_is_needed() -> None:
    assert "Answer    16 days" in _smoke(UNCITED, needs_citation=False)
    with pytest.raises(FactoryError, match="cites nothing"):
        _smoke(UNCITED)


def test_an_empty_answer_fails_with_its_finish_reason() -> None:
    with pytest.raises(FactoryError, match="is empty; it ended with 'content_filter'"):
        _smoke([chunk({}, "content_filter"), "data: [DONE]"], needs_citation=False)


def test_an_answer_that_breaks_off_fails() -> None:
    with pytest.raises(Unavailable, match="broke off"):
        _smoke(CITED[:1])


def test_an_answer_that_takes_too_long_fails() -> None:
    with pytest.raises(DeadlineExceeded, match="not complete after 0 s"):
        _smoke(CITED, timeout_seconds=0)
