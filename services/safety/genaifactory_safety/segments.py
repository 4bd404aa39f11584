"""Cuts a growing text into segments that are scanned one by one, at places that depend on the text alone.

Most words can be part of no entity: short, without a digit and without any of `@ = : --`. One regular expression skips
them. Another word opens a *chain*, which continues while the words after it could belong to the same entity: groups of
digits, groups of an IBAN, the value after "password =", a PEM header. The chain is the segment.

Why the pieces in which the text arrives make no difference: a word is classified when the character after it is known,
or when its known part already decides (it holds a digit, or is long); a chain ends when the next word is classified.
Both are functions of the text alone. The pieces decide when a segment is returned, not which.

Why memory is bounded: a chain of WINDOW_CHARACTERS is returned unfinished; the scanner reports the position up to
which it is decided (`resume`), which leaves an overlap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from genaifactory_common.normalise import IGNORABLE, UNSPACED, normalise
from genaifactory_safety.secrets import ASSIGNED_NAME, NAME_CHARACTERS, SEPARATOR

WINDOW_CHARACTERS = 1280
"""The longest segment."""
OVERLAP_CHARACTERS = 256
"""Longer than any entity in which a long chain may be cut; see scanner.py."""
CONTEXT_CHARACTERS = 96
"""The text before a segment that is kept."""

_BREAK = rf"\s{UNSPACED}"
# Marks of decomposed Vietnamese are common; other marks, and characters that normalisation maps to ASCII, make a word
# suspicious.
_STYLED = (
    "\u0304\u0305\u0307\u0308\u030a-\u031a\u031c-\u0322\u0324-\u036f\u20d0-\u20ff\u00b2\u00b3\u00b9\u2070-\u209f"
    "\u2100-\u214f\u2460-\u24ff\u3200-\u33ff\uff00-\uffef\U0001d400-\U0001d7ff\U0001f100-\U0001f1ff"
)
_SIGNS = rf"\d@=:{IGNORABLE}{_STYLED}"
_LONG = 16

_PLAIN_WORDS = re.compile(rf"(?:(?:[^{_BREAK}{_SIGNS}\-]|-(?!-)){{0,{_LONG - 1}}}+[{_BREAK}]++)*+")
_SUSPICIOUS = re.compile(rf"[{_SIGNS}]|--|.{{{_LONG}}}", re.DOTALL)
_WORD = re.compile(rf"[^{_BREAK}]*")
_GAP = re.compile(rf"[{_BREAK}]*")
_IS_BREAK = re.compile(rf"[{_BREAK}]").match
_NO_BREAK = re.compile(r"[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]{1,8}\Z")

# Words that are no entity themselves but may be part of one, or mark a number as an amount.
_CONNECTOR = re.compile(
    r"[-–—./()+·,]{1,3}|\(?(?:đ|đồng|vnđ|vnd|usd|eur|triệu|tỷ|nghìn|ngàn|k|%|km|kg|m2)[.,;:!?)]*", re.IGNORECASE
)
_IBAN_BEGUN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}")
_IBAN_GROUP = re.compile(r"[A-Z]{1,4}[.,;:!?)\"']*")
_PEM_BEGUN = re.compile(r"-----BEGIN(?: [A-Z0-9]{1,24}){0,5}\Z")
_PEM_WORD = re.compile(r"[A-Z0-9]{1,24}(?:-.*)?")
_ASSIGNMENT_BEGUN = re.compile(rf"{ASSIGNED_NAME}[\"'`\])]{{0,2}}{SEPARATOR}\s?(?:([\"'`])(?:(?!\1)[^\n]){{0,256}})?\Z")


@dataclass(frozen=True)
class Segment:
    """A part of the text to scan, by position in the whole text."""

    start: int
    end: int
    unfinished: bool
    """Whether it is the beginning of a longer chain."""


class Segments:
    """The held part of a growing text and its segments. Positions count from the beginning of the whole text."""

    def __init__(self) -> None:
        self.end = 0
        """Characters fed so far."""
        self.clear = 0
        """Every segment that begins before it was returned."""
        self._text = ""
        self._base = 0
        self._final = False
        self._chain: int | None = None
        self._chain_end = 0

    def feed(self, text: str) -> None:
        """Adds the next piece of the text."""
        self._text += text
        self.end += len(text)

    def close(self) -> None:
        """Marks the end of the text."""
        self._final = True

    @property
    def final(self) -> bool:
        """Whether the text has ended."""
        return self._final

    @property
    def words_end(self) -> int:
        """The end of the last complete word, with the gap after it."""
        if self._final:
            return self.end
        position = len(self._text)
        while position and not _IS_BREAK(self._text[position - 1]):
            position -= 1
        return self._base + position

    def slice(self, start: int, end: int) -> str:
        """The part of the text from start to end that is held."""
        return self._text[max(start - self._base, 0) : max(end - self._base, 0)]

    def context(self, position: int) -> str:
        """The text before a position."""
        return self.slice(position - CONTEXT_CHARACTERS, position)

    def next(self) -> Segment | None:
        """The next segment, or None when more text is needed; there is then none before `clear`."""
        if self._chain is None:
            found = _PLAIN_WORDS.match(self._text, self.clear - self._base)
            self.clear = self._base + (found.end() if found else 0)
            word = self._word(self.clear)
            if not _SUSPICIOUS.search(word):
                if self._final:
                    self.clear = self.end
                return None
            self._chain = self._chain_end = self.clear
        return self._follow(self._chain)

    def resume(self, position: int) -> None:
        """Goes on from here: the last segment is decided up to this position."""
        self.clear = position
        self._chain = None

    def forget(self, position: int) -> None:
        """Drops the text before this position, but for its context."""
        drop = position - CONTEXT_CHARACTERS - self._base
        if drop > 0:
            self._text = self._text[drop:]
            self._base += drop

    def _follow(self, start: int) -> Segment | None:
        """The chain from `start`; None until its end is known."""
        while self._chain_end - start < WINDOW_CHARACTERS:
            begin = self._chain_end
            if begin > start:
                begin += len(self._gap(begin))
                gap = self.slice(self._chain_end, begin)
                if begin == self.end and not self._final and not self._separates(gap):
                    return None
                if begin == self.end or self._separates(gap):
                    return Segment(start, self._chain_end, unfinished=False)
            word = self._word(begin)
            known = begin + len(word) < self.end or self._final
            if not known:
                if _SUSPICIOUS.search(word) and self.end - start >= WINDOW_CHARACTERS:
                    break
                return None
            if begin > start and not _SUSPICIOUS.search(word) and not self._joins(start, word):
                return Segment(start, self._chain_end, unfinished=False)
            self._chain_end = begin + len(word)
        return Segment(start, start + WINDOW_CHARACTERS, unfinished=True)

    def _word(self, position: int) -> str:
        found = _WORD.match(self._text, position - self._base)
        return found.group() if found else ""

    def _gap(self, position: int) -> str:
        found = _GAP.match(self._text, position - self._base)
        return found.group() if found else ""

    @staticmethod
    def _separates(gap: str) -> bool:
        """Whether no entity can span this gap."""
        return gap != "" and not _NO_BREAK.match(gap)

    def _joins(self, start: int, word: str) -> bool:
        """Whether a word that is not suspicious itself may belong to the chain before it."""
        if _CONNECTOR.fullmatch(word):
            return True
        chain = self.slice(max(start, self._chain_end - 2 * OVERLAP_CHARACTERS), self._chain_end)
        if _IBAN_GROUP.fullmatch(word) and _IBAN_BEGUN.search(chain):
            return True
        if "--" in chain and _PEM_WORD.fullmatch(word) and _PEM_BEGUN.search(normalise(chain).text):
            return True
        if "=" not in chain and ":" not in chain and chain.isascii():
            return False
        named = self.slice(start - NAME_CHARACTERS, start)
        return _ASSIGNMENT_BEGUN.search(normalise(named + chain).text) is not None
