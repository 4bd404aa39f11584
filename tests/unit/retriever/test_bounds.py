"""Small files crafted to parse slowly: each is refused by the bound of a structure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from genaifactory_common import formats
from genaifactory_common.errors import TooLarge
from genaifactory_retriever import bounds
from genaifactory_retriever.parsing import parser
from tests.unit.retriever import files
from tests.unit.retriever.conftest import LIMITS

# The defaults of the settings, so that only the structure is beyond a bound.
ROOMY = replace(LIMITS, text_characters=2_000_000, unpacked_bytes=128 << 20, seconds=60)
SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)


def sheet(rows: str) -> bytes:
    return files.with_part(files.xlsx({"A": [["a"]]}), "xl/worksheets/sheet1.xml", lambda _: SHEET.format(rows))


def within(data: bytes, part: str, place: str, more: str) -> bytes:
    """The archive with more XML inserted after `place` in one of its parts."""
    return files.with_part(data, part, lambda xml: xml.replace(place, place + more, 1))


def book(chapter: str) -> bytes:
    """A book that lists its only chapter 20,000 times."""
    data = files.epub({"a.xhtml": chapter})
    return files.with_part(data, "OEBPS/book.opf", lambda xml: re.sub(r'<itemref idref="c0"/>', r"\g<0>" * 20_000, xml))


def mail(headers: str, body: str = "") -> bytes:
    return f"From: a@b.example\r\n{headers}\r\n\r\n{body}".encode()


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "rows whose one cell is the last column's": (
        formats.XLSX,
        lambda: sheet("".join(f'<row r="{i}"><c r="XFD{i}"><v>1</v></c></row>' for i in range(1, 10_001))),
        "The XLSX holds more than 500000 cells",
    ),
    "a million such rows": (
        formats.XLSX,
        lambda: sheet("".join(f'<row r="{i}"><c r="XFD{i}"><v>1</v></c></row>' for i in range(1, 1_000_001))),
        "The XLSX holds more than 4000000 tags",
    ),
    "a row of empty cells": (
        formats.XLSX,
        lambda: sheet(f"<row>{'<c/>' * 5_000_000}</row>"),
        "The XLSX holds more than 4000000 tags",
    ),
    "empty rows of a table": (formats.CSV, lambda: b",\n" * 2_000_000, "The CSV holds more than 500000 cells"),
    "a mail of 100,000 parts": (
        formats.EML,
        lambda: mail(
            "Content-Type: multipart/mixed; boundary=x",
            "--x\r\nContent-Type: text/plain\r\n\r\nhi\r\n" * 100_000 + "--x--\r\n",
        ),
        "The EML holds more than 500 parts",
    ),
    "a mail to a million people": (
        formats.EML,
        lambda: mail(f"To: {'a@b, ' * 1_000_000}"),
        "The EML holds more than 262144 characters of headers",
    ),
    "a book that lists a chapter 20,000 times": (
        formats.EPUB,
        lambda: book("<p>x</p>"),
        "The EPUB holds more than 10000 parts",
    ),
    "a book that lists a long chapter 20,000 times": (
        formats.EPUB,
        lambda: book(f"<script>{'x' * 1_000_000}</script>"),
        f"The EPUB holds more than {128 << 20} bytes when unpacked",
    ),
    "a book that lists a chapter of many tags 20,000 times": (
        formats.EPUB,
        lambda: book("<i></i>" * 10_000),
        "The EPUB holds more than 1000000 tags",
    ),
    "a slide of two million shapes": (
        formats.PPTX,
        lambda: within(files.pptx_file(), "ppt/slides/slide1.xml", "<p:spTree>", "<p:sp/>" * 2_000_000),
        "The PPTX holds more than 1000000 tags",
    ),
    "two million paragraphs": (
        formats.DOCX,
        lambda: within(files.docx_file(), "word/document.xml", "<w:body>", "<w:p/>" * 2_000_000),
        "The DOCX holds more than 1000000 tags",
    ),
    "empty paragraphs": (
        formats.DOCX,
        lambda: within(files.docx_file(), "word/document.xml", "<w:body>", "<w:p/>" * 200_000),
        "The DOCX holds more than 100000 paragraphs",
    ),
    "a cell as wide as a billion": (
        formats.DOCX,
        lambda: within(
            files.docx_file(),
            "word/document.xml",
            "<w:body>",
            '<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="1000000000"/></w:tcPr><w:p/></w:tc></w:tr></w:tbl>',
        ),
        "The DOCX holds more than 100000 table cells",
    ),
    "lists within lists": (
        formats.RST,
        lambda: ("* " * 60 + "x\n\n").encode() * 5000,
        "The RST holds more than 20 paragraphs and list items within each other",
    ),
    "quotes within quotes": (
        formats.RST,
        lambda: "\n\n".join(" " * (i % 40) + "x" for i in range(40_000)).encode(),
        "The RST holds more than 20 paragraphs and list items within each other",
    ),
    "a list of 50,000 items": (
        formats.RST,
        lambda: b"* x\n" * 50_000,
        "The RST holds more than 20000 paragraphs, list items and headings",
    ),
    "two million elements": (
        "text/html",
        lambda: b"<i></i>" * 1_000_000 + b"x",
        "The HTML holds more than 1000000 tags",
    ),
    "elements nested half a million deep": (
        "text/html",
        lambda: b"<div>" * 500_000 + b"deep",
        "The HTML holds more than 10000 elements within each other",
    ),
    "the same within Markdown": (
        "text/markdown",
        lambda: b"<div>" * 500_000 + b"deep",
        "The HTML holds more than 10000 elements within each other",
    ),
    "brackets that may be links": (
        "text/markdown",
        lambda: b"![[]()" * 100_000,
        "The Markdown holds more than 20000 brackets in one paragraph",
    ),
    "source code of a million definitions": (
        "text/x-source",
        lambda: b"def f\n" * 1_000_000,
        "The document holds more than 2000000 characters of text",
    ),
    "paragraphs without end": (
        "text/plain",
        lambda: b"a\n\n" * 1_000_000,
        "The document holds more than 2000000 characters of text",
    ),
}


@pytest.mark.parametrize(("media_type", "make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_crafted_to_parse_slowly_is_refused_by_its_bound(
    media_type: str, make: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(TooLarge, match=message) as caught:
        parser.parse(make(), media_type, ROOMY)
    assert caught.value.field == "data"


def test_documents_just_below_the_bounds_are_parsed() -> None:
    rows: list[list[object]] = [["Name", "City", "Days"], *([f"An {i}", "Huế", i] for i in range(20_000))]
    assert parser.parse(files.xlsx({"A": rows}), formats.XLSX, ROOMY).text.endswith(
        "Name: An 19999; City: Huế; Days: 19999"
    )
    parts = "--x\r\nContent-Type: text/plain\r\n\r\nhi\r\n" * (bounds.MAIL_PARTS - 1)
    recipients = ", ".join(f"person{i}@corp.example" for i in range(1000))
    data = mail(f"To: {recipients}\r\nContent-Type: multipart/mixed; boundary=x", f"{parts}--x--\r\n")
    assert "person999@corp.example" in parser.parse(data, formats.EML, ROOMY).text
    nested = "\n\n".join(" " * i + "x" for i in range(bounds.RST_NESTING - 1)) + "\n\nend"
    assert parser.parse(nested.encode(), formats.RST, ROOMY).text.endswith("end")
    links = "\n".join(f"- [page {i}](p{i})" for i in range(10_000)).encode()
    assert parser.parse(links, "text/markdown", ROOMY).text.endswith("page 9999")
