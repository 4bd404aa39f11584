"""Plain text to blocks: paragraphs between blank lines."""

from __future__ import annotations

import re

from genaifactory_retriever.documents import Block

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def parse(text: str) -> list[Block]:
    """The paragraphs."""
    return [Block(piece) for piece in _BLANK_LINES.split(text.replace("\r\n", "\n"))]
