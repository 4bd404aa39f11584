"""Citation marks in an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaifactory_common.testing.retriever import passage
from genaifactory_orchestrator.answers import citations
from genaifactory_orchestrator.answers.citations import MarkFilter


def filtered(pieces: list[str], passages: int = 3) -> str:
    marks = MarkFilter(passages)
    return "".join([*map(marks.feed, pieces), marks.end()])


@pytest.mark.parametrize(
    ("text", "released"),
    [
        ("a [1].", "a [1]."),
        ("a [4].", "a."),
        ("a[0]b", "ab"),
        ("[9] b", " b"),
        ("a [1, 4] b", "a [1] b"),
        ("a [4;5] b", "a b"),
        ("a [1][4][2]", "a [1][2]"),
        ("array[] [x] [1 a]", "array[] [x] [1 a]"),
        ("[[9]2]", "[…2]"),
        ("[1[9]0]", "[1…0]"),
        ("no mark [", "no mark ["),
        ("no mark [1", "no mark [1"),
        ("[01] [0001]", "[01] [0001]"),
        ("[99999]", "[99999]"),
        ("tiếng Việt [2] và [8]", "tiếng Việt [2] và"),
    ],
)
def test_marks_that_name_no_passage_are_removed(text: str, released: str) -> None:
    assert filtered([text]) == released


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.text(alphabet="[]0123459, ;a…\n", max_size=40), max_size=12))
def test_the_result_does_not_depend_on_the_cuts_and_holds_no_wrong_mark(pieces: list[str]) -> None:
    whole = "".join(pieces)
    released = filtered(pieces)
    assert released == filtered([whole]) == filtered(list(whole))
    assert filtered([released]) == released


def test_little_is_held_back() -> None:
    marks = MarkFilter(1)
    assert marks.feed("plain text") == "plain text"
    assert marks.feed(" more [") == " more"
    assert len(marks.feed("[" + "1" * 200)) > 100


def test_citations_have_offsets_in_code_points() -> None:
    found = citations.find("Việt 🎉 [2], [1, 2] [3]", [passage("a"), passage("b", number=2)])
    assert [(c.number, c.passage_id, c.start_offset, c.end_offset) for c in found] == [
        (2, "p2", 7, 10),
        (1, "p1", 12, 18),
        (2, "p2", 12, 18),
    ]
