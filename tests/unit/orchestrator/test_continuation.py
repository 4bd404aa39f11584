"""Removal of what a model repeats of the answer that it continues."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory_orchestrator.models.continuation import OverlapTrimmer


def trimmed(prefix: str, *pieces: str) -> str:
    trimmer = OverlapTrimmer(prefix)
    return "".join(trimmer.feed(piece) for piece in pieces) + trimmer.finish()


LONG = "Hợp đồng có hiệu lực từ ngày ký. Bên A giao hàng trong ba mươi ngày"


@pytest.mark.parametrize(
    ("prefix", "continuation", "whole"),
    [
        pytest.param("The sky is", " blue.", "The sky is blue.", id="an exact continuation"),
        pytest.param("The sky is", "The sky is blue.", "The sky is blue.", id="the whole answer again"),
        pytest.param("The sky is", "\n\nThe sky is blue.", "The sky is blue.", id="the whole answer after a newline"),
        pytest.param("\nThe sky is", "The sky is blue.", "\nThe sky is blue.", id="the whole answer without a newline"),
        pytest.param(LONG, "Bên A giao hàng trong ba mươi ngày làm việc.", LONG + " làm việc.", id="the last sentence"),
        pytest.param("The quick bro", "brown fox", "The quick brown fox", id="the word that was cut off"),
        pytest.param("The quick bro", "wn fox", "The quick brown fox", id="the rest of the word that was cut off"),
        pytest.param("The sky is", "is blue.", "The sky is blue.", id="the last word"),
        pytest.param("The quick brown ", "brown fox", "The quick brown fox", id="the last word and its space"),
        pytest.param("It was very", " very good", "It was very very good", id="a word that is meant twice"),
        pytest.param("It is the year 20", "20.", "It is the year 2020.", id="digits that only look repeated"),
        pytest.param("1, 1", ", 1, 1", "1, 1, 1, 1", id="a series"),
        pytest.param("ban", "ana", "banana", id="an overlap inside a word"),
        pytest.param("----------", "-----|", "---------------|", id="a line of one character"),
        pytest.param("0000 0000 0000", " 0000 0000 1", "0000 0000 0000 0000 0000 1", id="too few different characters"),
        pytest.param("The sky is blue", "The sky was grey", "The sky is blueThe sky was grey", id="another answer"),
        pytest.param("The sky is blue", "The sky is", "The sky is blue", id="less than the whole answer again"),
        pytest.param("The sky is blue", "", "The sky is blue", id="nothing more"),
        pytest.param("Trời xanh", "Trời xanh", "Trời xanh", id="the whole answer and nothing new"),
        pytest.param("", "The sky", "The sky", id="no prefix"),
        pytest.param("  ", " The sky", "   The sky", id="a prefix of spaces"),
        pytest.param(
            "a b a b c d e f a b", "a b c d e f a b!", "a b a b c d e f a b!", id="the longest overlap counts"
        ),
    ],
)
def test_a_repetition_is_removed(prefix: str, continuation: str, whole: str) -> None:
    assert prefix + trimmed(prefix, continuation) == whole
    assert prefix + trimmed(prefix, *continuation) == whole


WORDS = st.lists(st.sampled_from(["the", "sky", "is", "blue", "xanh", "ha", "1", "là", "\n", "."]), max_size=12)


@given(words=WORDS, more=WORDS, data=st.data())
def test_the_result_does_not_depend_on_how_the_stream_is_cut(
    words: list[str], more: list[str], data: st.DataObject
) -> None:
    prefix, continuation = " ".join(words), " ".join(more)
    cuts = data.draw(st.lists(st.integers(0, len(continuation))))
    places = sorted({0, len(continuation), *cuts})
    pieces = [continuation[a:b] for a, b in itertools.pairwise(places)]
    assert trimmed(prefix, *pieces) == trimmed(prefix, continuation)


@given(prefix=st.text(min_size=1, max_size=60), rest=st.text(max_size=30))
def test_an_answer_that_starts_again_is_not_repeated(prefix: str, rest: str) -> None:
    kept = trimmed(prefix, prefix + rest)
    assert (prefix + rest).endswith(kept)
    if prefix.strip():
        assert len(kept) <= len(rest)


def test_text_that_cannot_be_a_repetition_is_not_held_back() -> None:
    trimmer = OverlapTrimmer("The sky is")
    assert trimmer.feed(" ") == ""
    assert trimmer.feed("b") == " b"
    assert trimmer.feed("The sky is") == "The sky is"


def test_a_long_answer_is_searched_quickly() -> None:
    prefix = "a b " * 50_000
    trimmer = OverlapTrimmer(prefix)
    assert trimmer.feed("a completely different ending") == "a completely different ending"
