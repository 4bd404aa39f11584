"""How much of each structure one document may hold, since a reader's time grows with it whatever the text.

A document of as much text as is taken holds a fraction of these. What its bytes, text and pages are bounded by, and the
time that it may take, are settings (`parsing.limits.Limits`).
"""

from __future__ import annotations

from genaifactory_common.errors import TooLarge

TAGS = 1_000_000
"""Of HTML, and of the XML in an archive: each "<"."""
SHEET_TAGS = 4_000_000
"""Of a workbook, which has several for each cell."""
NESTING = 10_000
"""HTML elements within each other: a reader's time grows with the square."""
PARTS = 10_000
"""Of an archive, and how often it may say that one is read."""
ROWS = 1_048_576
"""Of all tables together; as many as a sheet has."""
CELLS = 500_000
"""Of all tables together, with the empty ones before the last of each row."""
WORD_CELLS = 100_000
"""Of a table in DOCX, as many as it is wide and long."""
WORD_PARAGRAPHS = 100_000
MAIL_PARTS = 500
"""With those of mails within it."""
MAIL_HEADER_CHARACTERS = 262_144
"""Of all its and its parts' headers together, each as often as it is looked at: Python reads them slowly."""
FORWARDED_MAILS = 20
"""Within each other."""
RST_NESTING = 20
RST_ELEMENTS = 20_000
"""Paragraphs, list items and headings."""
BRACKETS = 20_000
"""Of Markdown between two blank lines: the time to find links grows with the square."""


class Count:
    """Counts one structure of a document up to its bound."""

    def __init__(self, kind: str, what: str, most: int) -> None:
        """kind, what: for the message: "XLSX", "cells"."""
        self._kind = kind
        self._what = what
        self._most = most
        self._counted = 0

    def add(self, number: int = 1) -> None:
        """Raises TooLarge beyond the bound."""
        self._counted += number
        require(self._counted, self._most, self._kind, self._what)


def require(number: int, most: int, kind: str, what: str) -> None:
    """Raises TooLarge, which names the bound, when there are more."""
    if number > most:
        raise TooLarge(f"The {kind} holds more than {most} {what}; simplify or split it.", field="data")
