"""XLSX to blocks: visible sheets under their names, one block per row. Formulas have the values saved with them."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterable, Iterator

import openpyxl

from genaifactory_retriever import bounds
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing import archives, tables


def parse(data: bytes, max_unpacked_bytes: int) -> tuple[str, Iterable[Block]]:
    """Title and blocks. Raises InvalidArgument, TooLarge, and whatever openpyxl does on damage."""
    with archives.opened(data, "XLSX", max_unpacked_bytes, program="Excel", max_tags=bounds.SHEET_TAGS) as archive:
        archive.check()
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    return book.properties.title or "", _blocks(book)


def _blocks(book: openpyxl.Workbook) -> Iterator[Block]:
    size = tables.Size("XLSX")
    for sheet in book.worksheets:
        if sheet.sheet_state == "visible":
            yield Block(sheet.title, 1)
            # The declared size of a sheet may be wrong.
            sheet.reset_dimensions()
            yield from tables.blocks(_rows(sheet.iter_rows()), size)


def _rows(rows: Iterable[Iterable[object]]) -> Iterator[list[str]]:
    for row in rows:
        yield [_text(getattr(cell, "value", None), getattr(cell, "number_format", "")) for cell in row]


def _text(value: object, number_format: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return f"{value * 100:.10g}%" if "%" in number_format else f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    return str(value)
