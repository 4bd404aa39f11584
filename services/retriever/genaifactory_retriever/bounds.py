"""Bounds of one document's structures: the time to parse it grows with them, however short its text.

A real document of the greatest length holds a fraction of these. The bounds of bytes, text, pages and time are settings
(`parsing.limits.Limits`).
"""

from __future__ import annotations

from genaifactory_common.errors import TooLarge

TAGS = 1_000_000
"""Of HTML, and of the XML in an archive: each "<"."""
SHEET_TAGS = 4_000_000
"""Of a workbook, which has several for each cell."""
NESTING = 10_000
"""Depth of HTML elements: the time to parse grows with its square."""
PARTS = 10_000
"""Of an archive, and how often they are read."""
ROWS = 1_048_576
"""Of all tables together; as many as a sheet has."""
CELLS = 500_000
"""Of all tables together, with the empty ones before the last of each row."""
WORD_CELLS = 100_000
"""Of a DOCX table, merged cells by their width."""
WORD_PARAGRAPHS = 100_000
MAIL_PARTS = 500
"""With those of forwarded mails."""
MAIL_HEADER_CHARACTERS = 262_144
"""Of all headers of a mail and its parts, each as often as it is read: Python parses them slowly."""
FORWARDED_MAILS = 20
"""Depth of mails within mails."""
RST_NESTING = 20
RST_ELEMENTS = 20_000
"""Paragraphs, list items and headings."""
BRACKETS = 20_000
"""Of Markdown between two blank lines: the time to find links grows with the square."""


class Count:
    """Counts one structure of a document up to its bound."""

    def __init__(self, kind: str, what: str, most: int) -> None:
        """kind, what: words of the error, as "XLSX", "cells"."""
        self._kind = kind
        self._what = what
        self._most = most
        self._counted = 0

    def add(self, number: int = 1) -> None:
        """Raises TooLarge beyond the bound."""
        self._counted += number
        require(self._counted, self._most, self._kind, self._what)


def require(number: int, most: int, kind: str, what: str) -> None:
    """Raises TooLarge, which names the bound, when `number` is above `most`."""
    if number > most:
        raise TooLarge(f"The {kind} holds more than {most} {what}; simplify or split it.", field="data")
