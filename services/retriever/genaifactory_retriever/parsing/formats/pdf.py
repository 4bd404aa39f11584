"""PDF to blocks: the text of each page, its lines joined to paragraphs."""

from __future__ import annotations

import io
import logging
import re

from pypdf import PdfReader
from pypdf.errors import LimitReachedError

from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever.documents import Block, require_text

_BLANK_LINES = re.compile(r"\n\s*\n")
_SENTENCE_END = (".", "!", "?", ":", ";", "…", "”", '"')
_SURROGATES = re.compile("[\ud800-\udfff]")


def parse(data: bytes, max_pages: int, max_characters: int) -> tuple[str, list[Block]]:
    """Title and blocks. Raises InvalidArgument (encrypted, no text), TooLarge, and whatever pypdf does on damage."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidArgument("The PDF is encrypted; save it without a password.", field="data")
        if len(reader.pages) > max_pages:
            raise TooLarge(
                f"The PDF has {len(reader.pages)} pages; at most {max_pages} are accepted. Split it.", field="data"
            )
        blocks: list[Block] = []
        characters = 0
        for page in reader.pages:
            text = _SURROGATES.sub("", page.extract_text())
            characters += len(text)
            require_text(characters, max_characters)
            blocks.extend(_paragraphs(text))
    except LimitReachedError:
        raise TooLarge("The PDF is too large when unpacked; simplify or split it.", field="data") from None
    if not blocks:
        raise InvalidArgument("The PDF holds no text, only images; run OCR on it first.", field="data")
    title = reader.metadata.title if reader.metadata else None
    return title if isinstance(title, str) else "", blocks


def _paragraphs(page: str) -> list[Block]:
    """Paragraphs of a page: ended by a blank line, or a line that ends a sentence well before the page's width."""
    blocks: list[Block] = []
    for piece in _BLANK_LINES.split(page):
        lines = [line.strip() for line in piece.splitlines() if line.strip()]
        width = max((len(line) for line in lines), default=0)
        paragraph = ""
        for line in lines:
            if paragraph.endswith("-") and line[:1].islower():
                paragraph = paragraph[:-1] + line
            else:
                paragraph = f"{paragraph} {line}".strip()
            if line.endswith(_SENTENCE_END) and len(line) < 0.75 * width:
                blocks.append(Block(paragraph))
                paragraph = ""
        if paragraph:
            blocks.append(Block(paragraph))
    return blocks
