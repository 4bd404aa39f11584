"""Generates small PDF, Office and EPUB files."""

from __future__ import annotations

import io
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

import docx
import pptx
import xlsxwriter
from pypdf import PdfReader, PdfWriter


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF with a line of Helvetica for each line of each page."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    font = 3
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for page in pages:
        lines = b" ".join(b"(%s) Tj T*" % line.encode("latin-1") for line in page.split("\n")) if page else b""
        content = b"BT /F1 12 Tf 14 TL 50 750 Td %s ET" % lines
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 %d 0 R >> >> >>" % (len(objects), font)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    if not title:
        return bytes(out)
    writer = PdfWriter(PdfReader(io.BytesIO(bytes(out))))
    writer.add_metadata({"/Title": title})
    return _written(writer)


def encrypted_pdf(text: str, password: str) -> bytes:
    writer = PdfWriter(PdfReader(io.BytesIO(pdf(text))))
    writer.encrypt(password, algorithm="AES-256")
    return _written(writer)


def _written(writer: PdfWriter) -> bytes:
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def docx_file() -> bytes:
    document = docx.Document()
    document.add_heading("Sổ tay", 0)
    document.add_heading("Cài đặt", 1)
    document.add_paragraph("Cắm thanh bộ nhớ USB vào máy.")
    document.add_paragraph("Khởi động lại", style="List Bullet")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text = "Bộ nhớ"
    table.rows[0].cells[1].text = "780 MB"
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def docx_bomb(unpacked_bytes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * unpacked_bytes)
    return stream.getvalue()


def zipped(parts: Mapping[str, str | bytes]) -> bytes:
    """An archive of these parts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return stream.getvalue()


def with_part(data: bytes, name: str, change: Callable[[str], str]) -> bytes:
    """The archive with one part changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    return zipped({**parts, name: change(parts[name].decode())})


def xlsx(sheets: Mapping[str, Sequence[Sequence[object]]], *, hidden: Sequence[str] = ()) -> bytes:
    """A workbook, written by a library that shares no code with our reader."""
    stream = io.BytesIO()
    with xlsxwriter.Workbook(stream, {"default_date_format": "yyyy-mm-dd"}) as book:
        percent = book.add_format({"num_format": "0%"})
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            if name in hidden:
                sheet.hide()
            for number, row in enumerate(rows):
                for column, value in enumerate(row):
                    if isinstance(value, str) and value.startswith("="):
                        sheet.write_formula(number, column, value, None, 42)
                    elif isinstance(value, float) and value < 1:
                        sheet.write_number(number, column, value, percent)
                    else:
                        sheet.write(number, column, value)
    return stream.getvalue()


def pptx_file() -> bytes:
    """Two slides, notes, a table and a hidden slide, written by python-pptx."""
    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "Nghỉ phép"
    first.placeholders[1].text = "16 ngày mỗi năm\nBáo trước ba ngày"
    first.notes_slide.notes_text_frame.text = "Nhắc về ngày lễ."
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "Allowance"
    cells = second.shapes.add_table(2, 2, 0, 0, 100, 100).table
    for place, text in enumerate(("City", "Per day", "Huế", "60 EUR")):
        cells.cell(place // 2, place % 2).text = text
    hidden = deck.slides.add_slide(deck.slide_layouts[5])
    hidden.shapes.title.text = "Secret"
    hidden._element.set("show", "0")
    stream = io.BytesIO()
    deck.save(stream)
    return stream.getvalue()


def epub(chapters: Mapping[str, str], *, more: Mapping[str, str | bytes] | None = None) -> bytes:
    """A book with a table of contents and these chapters, by file name, read in their order."""
    items = "".join(
        f'<item id="c{i}" href="text/{quote(name)}" media-type="application/xhtml+xml"/>'
        for i, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
            '<rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
            "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><metadata '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Sách nhỏ</dc:title></metadata><manifest>'
            '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
            f'{items}</manifest><spine><itemref idref="nav"/>{spine}</spine></package>',
            "OEBPS/nav.xhtml": "<html><body><nav><a>Contents</a></nav></body></html>",
            **{f"OEBPS/text/{name}": f"<html><body>{body}</body></html>" for name, body in chapters.items()},
            **(more or {}),
        }
    )


def cp1258(text: str) -> bytes:
    """The text in windows-1258: each letter, and its tone mark after it."""
    data = b""
    for letter in text:
        try:
            data += letter.encode("cp1258")
        except UnicodeEncodeError:
            parts = unicodedata.normalize("NFD", letter)
            tone = next(part for part in parts if part in "\u0300\u0301\u0303\u0309\u0323")
            data += unicodedata.normalize("NFC", parts.replace(tone, "")).encode("cp1258") + tone.encode("cp1258")
    return data
