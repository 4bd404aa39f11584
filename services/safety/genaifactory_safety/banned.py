"""Finds banned terms in a growing text, and returns the position before which no term can begin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex  # type: ignore[import-untyped]

from genaifactory_common.normalise import normalise
from genaifactory_safety.recogniser import REGEX_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from genaifactory_safety.segments import Segments

BANNED_TERM = "BANNED_TERM"


def compile_terms(terms: Iterable[str]) -> regex.Pattern[str]:
    """A pattern for whole words, without case; 1 to 4 signs or blanks may separate the words of a term."""
    # Shortest first: of two terms that begin at one place the shorter wins, so that the cuts do not decide.
    shortest_first = sorted(set(terms), key=lambda term: (len(term), term))
    return regex.compile("|".join(_term(term) for term in shortest_first), regex.IGNORECASE)


def _term(term: str) -> str:
    words = normalise(term).text.split()
    before = r"(?<!\w)" if _is_word(words[0][0]) else ""
    after = r"(?!\w)" if _is_word(words[-1][-1]) else ""
    return before + r"[\W_]{1,4}".join(regex.escape(word) for word in words) + after


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


class BannedTerms:
    """The search in one text."""

    def __init__(self, pattern: regex.Pattern[str]) -> None:
        """pattern: from compile_terms."""
        self.clear = 0
        """Every term before it is found, and none begins before it that ends later."""
        self._pattern = pattern

    def find(self, segments: Segments, end: int, *, final: bool) -> list[tuple[int, int]]:
        """Spans of terms up to `end`, where a word ends. final: the text after `end` is not looked at."""
        if self.clear >= end:
            return []
        start = self.clear
        before = normalise(segments.slice(start - 1, start)).text if start else ""
        text = normalise(segments.slice(start, end))
        window = before + text.text
        spans: list[tuple[int, int]] = []
        position = len(before)
        self.clear = end
        while position < len(window):
            found = self._pattern.search(window, position, partial=not final, timeout=REGEX_TIMEOUT_SECONDS)
            if found is None:
                break
            first, last = text.original(found.start() - len(before), found.end() - len(before))
            if found.partial:
                self.clear = start + first
                break
            spans.append((start + first, start + last))
            position = found.end()
        return spans
