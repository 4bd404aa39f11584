"""DOCX to blocks: paragraphs with their heading styles, lists, and tables row by row."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import docx
import docx.document
from docx.table import Table
from docx.text.paragraph import Paragraph

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing import archives

_HEADING = re.compile(r"^heading ([1-6])$", re.IGNORECASE)


def parse(data: bytes, max_unpacked_bytes: int) -> tuple[str, Iterable[Block]]:
    """Title and blocks. Raises InvalidArgument, TooLarge, and whatever python-docx does on damage."""
    with archives.opened(data, "DOCX", max_unpacked_bytes, program="Word") as archive:
        archive.check()
        document = docx.Document(io.BytesIO(data))
    return document.core_properties.title or "", _blocks(document)


def _blocks(document: docx.document.Document) -> Iterator[Block]:
    paragraphs = bounds.Count("DOCX", "paragraphs", bounds.WORD_PARAGRAPHS)
    cells = bounds.Count("DOCX", "table cells", bounds.WORD_CELLS)
    for item in document.iter_inner_content():
        if isinstance(item, Table):
            own = item._tbl.iter_tcs()  # type: ignore[no-untyped-call]  # python-docx has no types for it
            cells.add(sum(cell.grid_span for cell in own))
            yield from _table(item)
        else:
            paragraphs.add()
            yield from _paragraph(item)


def _paragraph(paragraph: Paragraph) -> list[Block]:
    text = paragraph.text
    if not text.strip():
        return []
    style = (paragraph.style.name if paragraph.style is not None else None) or ""
    if style.lower() == "title":
        return [Block(text, 1)]
    if heading := _HEADING.match(style):
        return [Block(text, int(heading.group(1)))]
    return [Block(f"- {text}" if style.lower().startswith("list") else text)]


def _table(table: Table) -> list[Block]:
    blocks = []
    for row in table.rows:
        cells: list[str] = []
        for cell in row.cells:
            text = " ".join(cell.text.split())
            if text and (not cells or cells[-1] != text):  # a merged cell is listed once for each column that it spans
                cells.append(text)
        if cells:
            blocks.append(Block(" | ".join(cells)))
    return blocks
