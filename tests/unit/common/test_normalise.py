"""The normal form of a text: same meaning, plain characters, and offsets in the original."""

from __future__ import annotations

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from genaifactory_common import normalise as module
from genaifactory_common.normalise import normalise


def test_the_shortcut_for_ordinary_text_agrees_with_the_full_normalisation() -> None:
    """For every character that the shortcut accepts."""
    stable = [chr(i) for i in range(sys.maxunicode + 1) if module._STABLE.fullmatch(chr(i))]
    assert len(stable) > 20_000
    assert [c for c in stable if module._plain(c) != c] == []


def test_the_shortcut_accepts_no_combining_marks() -> None:
    assert not any(unicodedata.combining(chr(i)) for i in range(sys.maxunicode + 1) if module._STABLE.fullmatch(chr(i)))


@given(st.text())
def test_offsets_increase_from_the_start_to_the_end_of_the_original(text: str) -> None:
    normalised = normalise(text)
    offsets = list(normalised.offsets)
    assert len(offsets) == len(normalised.text) + 1
    assert offsets == sorted(offsets)
    assert offsets[-1] == len(text)


@given(st.text(alphabet="0123456789abcđêễ@.", min_size=1))
def test_decomposition_and_invisible_characters_do_not_change_the_result(text: str) -> None:
    hidden = "\u200b".join(unicodedata.normalize("NFD", text))
    composed = unicodedata.normalize("NFC", text)
    assert normalise(unicodedata.normalize("NFD", text)).text == composed
    if composed.isascii():
        assert normalise(hidden).text == composed


def test_a_pile_of_marks_is_bounded() -> None:
    assert normalise("4" + "\u0336" * 10_000 + "1").text == "41"
