"""Small PDF and DOCX files, made as they are needed."""

from __future__ import annotations

import io
import zipfile

import docx
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
