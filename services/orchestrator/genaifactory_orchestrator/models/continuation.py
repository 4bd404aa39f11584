"""Removes what a model repeats when it was asked to continue an answer that another one began.

A backend that continues token by token does not repeat anything. A model that is only asked to continue may begin with
the whole answer again, with its last paragraph, or with the word that was cut off. `OverlapTrimmer` drops such a
repetition from the beginning of its stream, and holds text back only while it may still be one.
"""

from __future__ import annotations

_WINDOW = 4096  # characters of the answer's end in which a repetition may begin, besides the answer's start
_LONG = 8  # characters of overlap that count as a repetition wherever they begin
_DISTINCT = 3  # least different letters or digits in them, which excludes "--------" and "0000 0000"
_WORD = 2  # letters of a repeated last word


class OverlapTrimmer:
    """Filters the pieces of a continuation; returns what is new after `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.lstrip()
        self._held = ""
        self._begun = False
        self._starts: list[int] = []  # positions in the prefix where an incomplete repetition may begin
        self._overlap = 0  # characters of the longest complete repetition
        self._done = not self._prefix

    def feed(self, text: str) -> str:
        """Adds the next piece; returns the new text so far."""
        if self._done:
            return text
        self._held += text
        stripped = self._held.lstrip()
        if not stripped:
            return ""
        if not self._begun:
            self._begun = True
            self._starts = _candidates(self._prefix, stripped[0], spaced=len(stripped) < len(self._held))
        self._narrow(stripped)
        return "" if self._starts else self._release()

    def finish(self) -> str:
        """Ends the continuation; returns the rest of the new text."""
        if self._done:
            return ""
        if self._starts and self._starts[0] == 0 and not self._overlap:
            self._done = True  # it repeats a part of the answer from its beginning: nothing of it is new
            return ""
        return self._release()

    def _narrow(self, stripped: str) -> None:
        """Drops the starts that the text contradicts; stores the longest that it completes."""
        alive = []
        for start in self._starts:
            length = len(self._prefix) - start
            if len(stripped) < length:
                if self._prefix.startswith(stripped, start):
                    alive.append(start)
            elif length > self._overlap and stripped.startswith(self._prefix[start:]):
                self._overlap = length
        # An overlap shorter than a complete one is not needed any more.
        self._starts = [start for start in alive if len(self._prefix) - start > self._overlap]

    def _release(self) -> str:
        self._done = True
        held, self._held = self._held, ""
        return held.lstrip()[self._overlap :] if self._overlap else held


def _candidates(prefix: str, first: str, *, spaced: bool) -> list[int]:
    """Where a repetition that begins with `first` may start, the longest first."""
    return [
        start
        for start in (0, *range(max(1, len(prefix) - _WINDOW), len(prefix)))
        if prefix[start] == first
        and (start == 0 or _is_long(prefix, start) or (not spaced and _is_last_words(prefix, start)))
    ]


def _is_long(prefix: str, start: int) -> bool:
    if len(prefix) - start < _LONG:
        return False
    return len({c for c in prefix[start : start + 8 * _LONG] if c.isalnum()}) >= _DISTINCT


def _is_last_words(prefix: str, start: int) -> bool:
    # "the quick bro" + "brown fox", "the sky is" + "is blue". An exact continuation begins with a space or
    # with the rest of the word; so does "very" + " very good", which is no repetition.
    return prefix[start].isalpha() and not prefix[start - 1].isalnum() and len(prefix) - start >= _WORD
