"""Cuts documents into passages: whole sentences, never across a heading, of bounded length, with an overlap.

A passage's text is a slice of the document's text, so its offsets are exact.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from genaifactory_retriever.documents import Document, Section

# The end of a block, of a sentence, or of a line.
_UNIT_END = re.compile(r"\n\s*|(?<=[.!?…])[\"”’)\]]*\s+(?=\S)")

# In characters. The tokenizer makes one token of a longer word, so here every _LONG_WORD_STEP of it count as one.
_LONG_WORD = 100
_LONG_WORD_STEP = 8

Offsets = Callable[[str], list[tuple[int, int]]]
"""Start and end of each token of a text."""


@dataclass(frozen=True)
class Chunk:
    """A passage without its vectors."""

    text: str
    headings: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class _Unit:
    start: int
    end: int
    tokens: int


def chunk(document: Document, token_offsets: Offsets, *, max_tokens: int, overlap_tokens: int) -> list[Chunk]:
    """The passages of a document in reading order, each of at most max_tokens.

    Neighbours in one section share up to overlap_tokens, in whole sentences.
    """
    chunks: list[Chunk] = []
    for section in document.sections:
        units = _units(document.text, section, token_offsets, max_tokens)
        for start, end in _pack(units, max_tokens, overlap_tokens):
            chunks.append(Chunk(document.text[start:end], section.headings, start, end))
    return chunks


def _units(text: str, section: Section, token_offsets: Offsets, max_tokens: int) -> list[_Unit]:
    """Sentences of the section with their tokens; one that is too long is cut, if possible before a word."""
    body = text[section.start : section.end]
    starts = _starts(body, token_offsets(body))
    units: list[_Unit] = []
    begin = 0
    ends = [(found.start(), found.end()) for found in _UNIT_END.finditer(body)]
    for end, following in (*ends, (len(body), len(body))):
        first, last = bisect_left(starts, begin), bisect_left(starts, end)
        while last - first > max_tokens:
            cut = first + max_tokens
            while cut > first + max_tokens // 2 and not body[starts[cut] - 1].isspace():
                cut -= 1
            if cut == first + max_tokens // 2:
                cut = first + max_tokens
            units.append(_trimmed(body, begin, starts[cut], section.start, cut - first))
            begin, first = starts[cut], cut
        if last > first:
            units.append(_trimmed(body, begin, end, section.start, last - first))
        begin = following
    return units


def _starts(body: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Where tokens start, without the space before a word that SentencePiece counts to it.

    A word longer than _LONG_WORD, one token of the tokenizer, counts by its length.
    """
    return [
        position
        for begin, end in offsets
        for start in (begin + body[begin:end][:1].isspace(),)
        for position in (range(start, end, _LONG_WORD_STEP) if end - start > _LONG_WORD else (start,))
    ]


def _trimmed(body: str, begin: int, end: int, shift: int, tokens: int) -> _Unit:
    piece = body[begin:end]
    begin += len(piece) - len(piece.lstrip())
    return _Unit(shift + begin, shift + begin + len(piece.strip()), tokens)


def _pack(units: list[_Unit], max_tokens: int, overlap_tokens: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    first = 0
    while first < len(units):
        total = 0
        last = first
        while last < len(units) and total + units[last].tokens <= max_tokens:
            total += units[last].tokens
            last += 1
        spans.append((units[first].start, units[last - 1].end))
        if last == len(units):
            break
        # Step back over whole sentences, but always forward, and leave room for the next sentence.
        shared = 0
        following = last
        while (
            following - 1 > first
            and shared + units[following - 1].tokens <= overlap_tokens
            and shared + units[following - 1].tokens + units[last].tokens <= max_tokens
        ):
            following -= 1
            shared += units[following].tokens
        first = following
    return spans
