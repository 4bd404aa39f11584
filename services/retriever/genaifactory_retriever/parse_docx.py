"""DOCX to blocks: paragraphs with their heading styles, lists, and tables row by row."""

from __future__ import annotations

import io
import re
import zipfile

import docx
from docx.table import Table
from docx.text.paragraph import Paragraph

from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever.documents import Block

_MAX_PARTS = 10_000
_HEADING = re.compile(r"^heading ([1-6])$", re.IGNORECASE)
_OLE_MAGIC = b"\xd0\xcf\x11\xe0"


def parse(data: bytes, max_unpacked_bytes: int, max_characters: int) -> tuple[str, list[Block]]:
    """Title and blocks. Raises InvalidArgument, TooLarge, and whatever python-docx does on damage."""
    if data.startswith(_OLE_MAGIC):
        raise InvalidArgument(
            "The document is encrypted or in Word's old format; save it as .docx without a password.", field="data"
        )
    _check_archive(data, max_unpacked_bytes)
    document = docx.Document(io.BytesIO(data))
    blocks: list[Block] = []
    characters = 0
    for item in document.iter_inner_content():
        for block in _table(item) if isinstance(item, Table) else _paragraph(item):
            characters += len(block.text)
            if characters > max_characters:
                raise TooLarge(
                    f"The document holds more than {max_characters} characters of text. Split it.", field="data"
                )
            blocks.append(block)
    return document.core_properties.title or "", blocks


def _check_archive(data: bytes, max_unpacked_bytes: int) -> None:
    # The sizes in the directory bind: zipfile reads no more of a part than they say.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        if len(parts) > _MAX_PARTS or sum(part.file_size for part in parts) > max_unpacked_bytes:
            raise TooLarge(
                f"The DOCX unpacks to more than {max_unpacked_bytes} bytes or {_MAX_PARTS} parts; split it.",
                field="data",
            )


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
            if text and (not cells or cells[-1] != text):  # a merged cell comes once for each column that it spans
                cells.append(text)
        if cells:
            blocks.append(Block(" | ".join(cells)))
    return blocks
