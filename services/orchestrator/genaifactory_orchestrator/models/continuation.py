"""Takes back what a model repeats when it was asked to go on with an answer that another one began.

A backend that continues token by token never repeats. A model that is only asked to go on may begin with the
whole answer again, with its last paragraph, or with the word that was cut off. `OverlapTrimmer` drops such a
repetition from the beginning of its stream, holding text back only as long as it still looks like one.
"""

from __future__ import annotations

_WINDOW = 4096  # characters of the answer's end in which a repetition may begin; its very start always may
_LONG = 8  # characters of overlap that are a repetition wherever they begin
_DISTINCT = 3  # different letters or digits in them; "--------" and "0000 0000" prove nothing
_WORD = 2  # letters of a repeated last word


class OverlapTrimmer:
    """Feed it a continuation's pieces; it gives back what is new after `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.lstrip()
        self._held = ""
        self._begun = False
        self._starts: list[int] = []  # where in the prefix a repetition may begin that is not complete yet
        self._overlap = 0  # characters of the longest complete repetition
        self._done = not self._prefix

    def feed(self, text: str) -> str:
        """What may go out now."""
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
        """What is left when the continuation has ended."""
        if self._done:
            return ""
        if self._starts and self._starts[0] == 0 and not self._overlap:
            self._done = True  # the answer from its beginning, but not up to its end: nothing of it is new
            return ""
        return self._release()

    def _narrow(self, stripped: str) -> None:
        """Drops the starts that the text contradicts; notes the longest that it completes."""
        alive = []
        for start in self._starts:
            length = len(self._prefix) - start
            if len(stripped) < length:
                if self._prefix.startswith(stripped, start):
                    alive.append(start)
            elif length > self._overlap and stripped.startswith(self._prefix[start:]):
                self._overlap = length
        # A shorter overlap than one that is complete cannot win any more.
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
    # "the quick bro" + "brown fox", "the sky is" + "is blue". A model that goes on exactly begins with a space or
    # with the rest of the word; so does "very" + " very good", which is no repetition.
    return prefix[start].isalpha() and not prefix[start - 1].isalnum() and len(prefix) - start >= _WORD
