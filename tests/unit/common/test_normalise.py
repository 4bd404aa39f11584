"""The scanning form of a text: same meaning, plain characters, and the way back to the original."""

from __future__ import annotations

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from genaifactory_common import normalise as module
from genaifactory_common.normalise import normalise


def test_what_is_passed_through_unchanged_would_not_be_changed() -> None:
    """The short way for ordinary text agrees with the long way, for every character that may take it."""
    stable = [chr(i) for i in range(sys.maxunicode + 1) if module._STABLE.fullmatch(chr(i))]
    assert len(stable) > 20_000
    assert [c for c in stable if module._plain(c) != c] == []


def test_no_mark_joins_a_character_that_took_the_short_way() -> None:
    assert not any(unicodedata.combining(chr(i)) for i in range(sys.maxunicode + 1) if module._STABLE.fullmatch(chr(i)))


@given(st.text())
def test_offsets_rise_from_the_start_to_the_end_of_the_original(text: str) -> None:
    normalised = normalise(text)
    offsets = list(normalised.offsets)
    assert len(offsets) == len(normalised.text) + 1
    assert offsets == sorted(offsets)
    assert offsets[-1] == len(text)


@given(st.text(alphabet="0123456789abcđêễ@.", min_size=1))
def test_decomposing_and_hiding_change_nothing(text: str) -> None:
    hidden = "\u200b".join(unicodedata.normalize("NFD", text))
    composed = unicodedata.normalize("NFC", text)
    assert normalise(unicodedata.normalize("NFD", text)).text == composed
    if composed.isascii():
        assert normalise(hidden).text == composed


def test_a_pile_of_marks_is_bounded() -> None:
    assert normalise("4" + "\u0336" * 10_000 + "1").text == "41"
