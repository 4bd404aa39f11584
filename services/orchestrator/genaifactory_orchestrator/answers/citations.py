"""Marks like [1] in an answer: those that name no retrieved passage are removed, the others become citations.

Marks are filtered before the guardrail scans the text, so that removing one cannot join two halves of a secret after
the scan. The offsets are found afterwards, in the released text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from genaifactory.types.v1 import types_pb2

# "[3]", or "[1, 3]" with at most eight numbers; the space before a removed mark is removed as well.
_MARK = re.compile(r"[ \t]?\[(\d{1,4}(?: ?[,;] ?\d{1,4}){0,7})\]")
_LONGEST_MARK = 60  # characters; what `_MARK` can match at most
# The end of a text that may be the beginning of a mark.
_UNFINISHED = re.compile(rf"[ \t]?(?:\[[\d,; ]{{0,{_LONGEST_MARK}}})?\Z")
_OPEN = re.compile(r"\[[\d,; ]*\Z")
# Replaces a removed mark where its neighbours would form a new mark: "[[9]7]".
_GAP = "…"


class MarkFilter:
    """Removes marks that name no passage from a text that is still being written.

    The result does not depend on how the text is cut. At most `_LONGEST_MARK` characters are held back.
    """

    def __init__(self, passages: int) -> None:
        """passages: the number of retrieved passages; marks from 1 to it stay."""
        self._passages = passages
        self._held = ""
        self._tail = ""

    def feed(self, text: str) -> str:
        """Adds the next piece of the text; returns the next piece of the filtered text."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        return self._filtered(text[:end])

    def end(self) -> str:
        """Ends the text; returns the rest of the filtered text."""
        text, self._held = self._held, ""
        return self._filtered(text)

    def _filtered(self, text: str) -> str:
        if "[" not in text:
            self._tail = (self._tail + text)[-_LONGEST_MARK:]
            return text
        pieces: list[str] = []
        position = 0
        for match in _MARK.finditer(text):
            self._append(pieces, text[position : match.start()])
            self._append(pieces, self._replacement(match))
            position = match.end()
        self._append(pieces, text[position:])
        return "".join(pieces)

    def _append(self, pieces: list[str], piece: str) -> None:
        pieces.append(piece)
        self._tail = (self._tail + piece)[-_LONGEST_MARK:]

    def _replacement(self, match: re.Match[str]) -> str:
        numbers = _numbers(match)
        valid = [number for number in numbers if 1 <= number <= self._passages]
        if valid == numbers:
            return match[0]
        if valid:
            before = match[0][: match[0].index("[")]
            return f"{before}[{', '.join(map(str, valid))}]"
        return _GAP if _OPEN.search(self._tail) else ""


def find(text: str, passages: Sequence[types_pb2.Passage]) -> list[types_pb2.Citation]:
    """The citations in an answer, by position; each names one of `passages`."""
    citations = []
    for match in _MARK.finditer(text):
        start = match.start() + match[0].index("[")
        for number in _numbers(match):
            if 1 <= number <= len(passages):
                passage = passages[number - 1]
                citations.append(
                    types_pb2.Citation(
                        number=number,
                        passage_id=passage.passage_id,
                        document_id=passage.document_id,
                        title=passage.title,
                        uri=passage.uri,
                        start_offset=start,
                        end_offset=match.end(),
                    )
                )
    return citations


def _numbers(match: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", match[1])]
