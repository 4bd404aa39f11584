"""Sheets, slides, books, mails, reStructuredText and source code: the blocks of good files, the errors of bad ones."""

from __future__ import annotations

import contextlib
import datetime
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import openpyxl
import pytest

from genaifactory_common import formats
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever.documents import Block, bounded, clean
from genaifactory_retriever.parsing import isolation, parser
from genaifactory_retriever.parsing.formats import csv, eml, epub, pptx, rst, source, xlsx
from tests.unit.retriever import files
from tests.unit.retriever.conftest import LIMITS

BOUND = 1_000_000
# Ten entities within each other: a billion letters if they were resolved.
_ENTITIES = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(10))
BOMB = f'<?xml version="1.0"?><!DOCTYPE x [{_ENTITIES}]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>'


def texts(blocks: Iterable[Block]) -> list[str]:
    return [f"{'#' * block.level} {block.text}" if block.level else block.text for block in blocks]


# Sheets


def test_each_row_of_a_sheet_is_a_block_with_column_names_under_the_sheet_s_name() -> None:
    rows: Sequence[Sequence[object]] = [
        ["Phụ cấp năm 2026"],
        [],
        ["Thành phố", "Mỗi ngày", "Từ ngày", "Thuế", "Tổng"],
        ["Huế", 60, datetime.date(2026, 1, 2), 0.16, "=B4*2"],
        [
            "Đà Nẵng",
            None,
            datetime.datetime(2026, 1, 2, 8, 30, tzinfo=None),  # noqa: DTZ001  # sheets know no zones
            True,
            "ghi\nchú",
        ],
    ]
    title, blocks = xlsx.parse(files.xlsx({"Phụ cấp": rows, "Empty": [], "Secret": [["x"]]}, hidden=["Secret"]), BOUND)
    assert title == ""
    assert texts(blocks) == [
        "# Phụ cấp",
        "Phụ cấp năm 2026",
        "Thành phố: Huế; Mỗi ngày: 60; Từ ngày: 2026-01-02; Thuế: 16%; Tổng: 42",
        "Thành phố: Đà Nẵng; Từ ngày: 2026-01-02 08:30; Thuế: TRUE; Tổng: ghi chú",
        "# Empty",
    ]


def test_rows_of_numbers_have_no_names_and_a_row_of_names_alone_is_kept() -> None:
    assert texts(csv.parse(b"1,2\n3,4\n", None, 99)[1]) == ["1 | 2", "3 | 4"]
    assert texts(csv.parse(b"Name,City\n", None, 99)[1]) == ["Name | City"]
    assert texts(csv.parse(b"milk\nbread\n", None, 99)[1]) == ["milk", "bread"]


def test_a_value_beyond_the_named_columns_is_kept() -> None:
    assert texts(csv.parse(b"Name,City\nAn,Hue,more\n,Vinh\n", None, 99)[1]) == [
        "Name: An; City: Hue; more",
        "City: Vinh",
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_file_is_found(separator: str) -> None:
    rows = [["Tên", "Ghi chú"], ["An", "một; hai, ba"], ["Bình", 'nói "có"\nrồi']]
    data = "\r\n".join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows).encode()
    assert texts(csv.parse(data, None, 999)[1]) == [
        "Tên: An; Ghi chú: một; hai, ba",
        'Tên: Bình; Ghi chú: nói "có" rồi',
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1258", "cp1252"])
def test_the_encoding_of_a_csv_file_is_found(encoding: str) -> None:
    text = "Name;City\nRené;São Paulo, così\n" if encoding == "cp1252" else "Tên;Nơi ở\nNguyễn Mạnh Đức;Phố cổ Hà Nội\n"
    data = files.cp1258(text) if encoding == "cp1258" else text.encode(encoding)
    names, row = (line.split(";") for line in text.splitlines())
    assert texts(csv.parse(data, None, 999)[1]) == [f"{names[0]}: {row[0]}; {names[1]}: {row[1]}"]


# Slides, books, mails


def test_visible_slides_are_parsed_in_order_with_titles_tables_and_notes() -> None:
    assert texts(pptx.parse(files.pptx_file(), BOUND)[1]) == [
        "# Nghỉ phép",
        "- 16 ngày mỗi năm",
        "- Báo trước ba ngày",
        "Nhắc về ngày lễ.",
        "# Allowance",
        "City: Huế; Per day: 60 EUR",
    ]


def test_chapters_of_a_book_are_read_in_the_order_of_its_spine() -> None:
    book = files.epub({"hai ba.xhtml": "<h1>Một</h1><p>Đầu tiên.</p>", "a.xhtml": "<h1>Hai</h1><p>Sau đó.</p>"})
    title, blocks = epub.parse(book, BOUND)
    assert title == "Sách nhỏ"
    assert texts(blocks) == ["# Một", "Đầu tiên.", "# Hai", "Sau đó."]


def test_a_book_is_read_when_only_its_fonts_are_encrypted() -> None:
    def encrypted(part: str) -> dict[str, str | bytes]:
        return {
            "META-INF/encryption.xml": '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:CipherData>'
            f'<e:CipherReference URI="{part}"/></e:CipherData></encryption>'
        }

    chapters = {"a.xhtml": "<p>Text.</p>"}
    assert texts(epub.parse(files.epub(chapters, more=encrypted("OEBPS/font.otf")), BOUND)[1]) == ["Text."]
    with pytest.raises(InvalidArgument, match="chapters are encrypted"):
        epub.parse(files.epub(chapters, more=encrypted("OEBPS/text/a.xhtml")), BOUND)


def test_a_mail_has_blocks_of_addresses_text_forwarded_mails_and_attachment_names() -> None:
    inner = EmailMessage()
    inner["Subject"], inner["From"] = "Đơn", "c@x.example"
    inner.set_content("<p>Xin nghỉ <b>ba</b> ngày.</p>", subtype="html")
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "Nghỉ phép tháng 5", "An <an@x.example>", "b@x.example"
    mail.set_content("Chào bạn.\n\nTôi nghỉ ngày 5.")
    mail.add_alternative("<p>not this one</p>", subtype="html")
    mail.add_attachment(b"%PDF secret", maintype="application", subtype="pdf", filename="đơn.pdf")
    mail.add_attachment("secret", filename="list.txt")
    mail.add_attachment(inner)
    title, blocks = eml.parse(mail.as_bytes())
    assert title == "Nghỉ phép tháng 5"
    assert texts(blocks) == [
        "# Nghỉ phép tháng 5",
        "From: An <an@x.example> | To: b@x.example",
        "Chào bạn.",
        "Tôi nghỉ ngày 5.\n",
        "## Đơn",
        "From: c@x.example",
        "Xin nghỉ ba ngày.",
        "Attachments: đơn.pdf, list.txt",
    ]


def test_a_mail_in_another_charset_or_with_a_wrong_one_is_read() -> None:
    head = b"Subject: =?utf-8?b?TMawxqFuZw==?=\nContent-Type: text/plain; charset="
    title, blocks = eml.parse(head + b"iso-8859-1\n\nRen\xe9")
    assert (title, texts(blocks)[1:]) == ("Lương", ["René"])
    assert texts(eml.parse(head + b"klingon\n\nxin ch\xc3\xa0o")[1])[1:] == ["xin chào"]


def test_forwarded_mails_are_parsed_to_a_bounded_depth() -> None:
    mail = EmailMessage()
    mail["Subject"] = "0"
    mail.set_content("innermost")
    for number in range(1, 40):
        outer = EmailMessage()
        outer["Subject"] = str(number)
        outer.set_content("outer")
        outer.add_attachment(mail)
        mail = outer
    found = texts(eml.parse(mail.as_bytes())[1])
    assert found.count("outer\n") == 20
    assert "innermost\n" not in found


# reStructuredText and source code


def test_rst_keeps_text_under_headings_and_of_unknown_directives() -> None:
    text = """
Sổ tay
======

Xin chào :ref:`đây <start>` và :class:`~a.B`.

.. code-block:: python
   :linenos:

   x = 1
     y

.. versionadded:: 2.0
   Nghỉ phép mới.

.. py:function:: open(path)
   :module: os

   Opens *it*.

Phần hai
--------

- một

.. list-table::
   :header-rows: 1

   * - Tên
     - Tuổi
   * - An
     - 5
"""
    _, blocks = rst.parse(text)
    assert texts(replace(block, text=clean(block.text, verbatim=block.verbatim)) for block in blocks) == [
        "# Sổ tay",
        "Xin chào đây và a.B.",
        "x = 1\n  y",
        "2.0 Nghỉ phép mới.",
        "open(path)",
        "Opens it.",
        "## Phần hai",
        "- một",
        "Tên | Tuổi",
        "An | 5",
    ]


@pytest.mark.parametrize(
    "directive",
    [
        ".. include:: {}",
        ".. include:: {}\n   :literal:",
        ".. literalinclude:: {}",
        ".. raw:: html\n   :file: {}",
        ".. csv-table:: T\n   :file: {}",
        ".. code:: python\n   :file: {}",
        ".. |x| include:: {}\n\n|x|",
        ".. image:: {}\n   :scale: 50",
        ".. raw:: html\n\n   <iframe src={}></iframe>",
    ],
)
def test_rst_reads_no_file_and_writes_nothing_raw(directive: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the,secret\nword,xylophone\n")
    _, blocks = rst.parse(f"Before.\n\n{directive.format(secret)}\n\nAfter.\n")
    found = texts(blocks)
    assert found[0] == "Before."
    assert found[-1] == "After."
    assert "xylophone" not in "".join(found)
    assert "iframe" not in "".join(found)


def test_source_code_is_split_under_the_first_lines_of_its_definitions() -> None:
    assert texts(source.parse("import os\n\nclass A:\n    def f(self):\n        pass\n\n\nasync def g(): ...\n")) == [
        "import os\n",
        "# class A",
        "class A:\n    def f(self):\n        pass\n\n",
        "# async def g(): ...",
        "async def g(): ...\n",
    ]


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("export default function tính(a: number) {", "export default function tính(a: number)"),
        ("func (s *Server) Run() error {", "func (s *Server) Run() error"),
        ("pub(crate) fn main() {", "pub(crate) fn main()"),
        ("public final class Lúa {", "public final class Lúa"),
        ("int main(int argc, char **argv) {", "int main(int argc, char **argv)"),
        ("create or replace view leave as", "create or replace view leave as"),
        ("[tool.ruff]", "[tool.ruff]"),
        ("deploy() {", "deploy()"),
    ],
)
def test_definitions_of_many_languages_are_recognised(line: str, heading: str) -> None:
    assert texts(source.parse(f"{line}\n  body\n"))[0] == f"# {heading}"


@pytest.mark.parametrize("line", ["if (x) {", "type: module", "return f(x) {", "classes = 1", "x" * 5000 + "(" + ") {"])
def test_other_lines_begin_no_definition(line: str) -> None:
    assert texts(source.parse(line)) == [line]


# Through the whole parser


@pytest.mark.parametrize(
    ("data", "media_type", "title", "text"),
    [
        (files.xlsx({"A": [["Tên", "Tuổi"], ["An", 5]]}), formats.XLSX, "", "Tên: An; Tuổi: 5"),
        (files.pptx_file(), formats.PPTX, "Nghỉ phép", "60 EUR"),
        (files.epub({"a.xhtml": "<p>Chương một.</p>"}), formats.EPUB, "Sách nhỏ", "Chương một."),
        ("Tên,Tuổi\nAn,5\n".encode(), formats.CSV, "", "Tên: An; Tuổi: 5"),
        ("Tên\tTuổi\nAn\t5\n".encode(), formats.TSV, "", "Tên: An; Tuổi: 5"),
        ("Đầu\n===\n\nXin *chào*.\n".encode(), formats.RST, "Đầu", "Xin chào."),
        ("Subject: Hi\n\nXin chào.\n".encode(), formats.EML, "Hi", "Xin chào."),
        ("def f():\n    return 'chào'\n".encode(), "text/x-source", "", "return 'chào'"),
    ],
)
def test_each_format_is_read_in_a_process_of_its_own_or_as_text(
    data: bytes, media_type: str, title: str, text: str
) -> None:
    document = parser.parse(data, media_type, LIMITS)
    assert document.title == title
    assert text in document.text


@pytest.mark.parametrize("media_type", formats.MEDIA_TYPES)
def test_every_media_type_has_a_parser(media_type: str) -> None:
    binary = media_type in (formats.PDF, formats.DOCX, formats.XLSX, formats.PPTX, formats.EPUB)
    data = b"\x00\xff\x00"  # valid in none of them
    with pytest.raises(
        InvalidArgument, match="cannot be read as" if binary else "as UTF-8|NUL|header of a mail|cannot be"
    ):
        parser.parse(data, media_type, LIMITS)


# Hostile files


@pytest.mark.parametrize("kind", ["XLSX", "PPTX", "EPUB"])
def test_archives_that_unpack_beyond_the_bound_are_too_large(kind: str) -> None:
    parser = {"XLSX": xlsx, "PPTX": pptx, "EPUB": epub}[kind]
    bomb = files.zipped({"a.xml": b" " * (BOUND + 1)})
    with pytest.raises(TooLarge, match=f"The {kind} holds more than {BOUND} bytes when unpacked"):
        parser.parse(bomb, BOUND)
    many = files.zipped({str(i): b"" for i in range(10_001)})
    with pytest.raises(TooLarge, match="more than 10000 parts"):
        parser.parse(many, BOUND)


@pytest.mark.parametrize(("kind", "program"), [("XLSX", "Excel"), ("PPTX", "PowerPoint")])
def test_encrypted_and_old_office_files_are_refused(kind: str, program: str) -> None:
    parser = {"XLSX": xlsx, "PPTX": pptx}[kind]
    with pytest.raises(InvalidArgument, match=f"encrypted or in {program}'s old format; save it as .{kind.lower()}"):
        parser.parse(b"\xd0\xcf\x11\xe0" + b"x" * 100, BOUND)


def test_an_archive_with_a_password_is_refused() -> None:
    data = bytearray(files.epub({"a.xhtml": "<p>x</p>"}))
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = data.find(mark)
        while start >= 0:
            data[start + place] |= 1
            start = data.find(mark, start + 4)
    with pytest.raises(InvalidArgument, match="The EPUB is encrypted"):
        epub.parse(bytes(data), BOUND)


@pytest.mark.parametrize("head", [BOMB, OUTSIDE], ids=["bomb", "outside"])
@pytest.mark.parametrize(
    ("data", "part", "word", "media_type"),
    [
        (files.xlsx({"A": [["Name", "City"], ["An", "Hue"]]}), "xl/sharedStrings.xml", "Hue", formats.XLSX),
        (files.pptx_file(), "ppt/slides/slide1.xml", "16 ngày mỗi năm", formats.PPTX),
        (files.epub({"a.xhtml": "<p>x</p>"}), "OEBPS/book.opf", "Sách nhỏ", formats.EPUB),
    ],
)
def test_entities_are_never_resolved(head: str, data: bytes, part: str, word: str, media_type: str) -> None:
    hostile = files.with_part(data, part, lambda xml: head + xml.rpartition("?>")[2].replace(word, "&e9;"))
    with contextlib.suppress(InvalidArgument):  # a refusal is right, too
        document = parser.parse(hostile, media_type, LIMITS)
        assert "ha" not in document.text + document.title
        assert "root:" not in document.text + document.title


def test_a_sheet_that_claims_a_billion_rows_is_stopped() -> None:
    book = files.xlsx({"A": [["Name", "City"], ["An", "Hue"]]})
    far = files.with_part(
        book,
        "xl/worksheets/sheet1.xml",
        lambda xml: xml.replace('r="2"', 'r="999999999"').replace('"A1:B2"', '"A1:XFD9"'),
    )
    with pytest.raises(TooLarge, match="more than 1048576 rows"):
        bounded(xlsx.parse(far, BOUND)[1], BOUND)


def test_a_sheet_with_a_wrong_declared_size_is_read_whole() -> None:
    book = files.xlsx({"A": [["Name", "City"], ["An", "Hue"]]})
    lying = files.with_part(book, "xl/worksheets/sheet1.xml", lambda xml: xml.replace('"A1:B2"', '"A1:XFD1048576"'))
    assert texts(xlsx.parse(lying, BOUND)[1]) == ["# A", "Name: An; City: Hue"]


@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (b"a,b\n" + b'"' + b"x" * 200_000, formats.CSV, "cannot be read as CSV"),
        (b"a,b\n" + b"word,word\n" * 20_000, formats.CSV, "more than 100000 characters"),
        (files.xlsx({"A": [["word" * 2000] * 2] * 20}), formats.XLSX, "more than 100000 characters"),
        (files.zipped({"ppt/presentation.xml": "<p"}), formats.PPTX, "cannot be read as PPTX"),
        (files.zipped({"a": ""}), formats.PPTX, "lacks its part 'ppt/presentation.xml'"),
        (files.zipped({"a": ""}), formats.EPUB, "lacks its part 'META-INF/container.xml'"),
        (files.zipped({"a": ""}), formats.XLSX, "cannot be read as XLSX"),
        (b"no mail at all", formats.EML, "no header of a mail"),
    ],
)
def test_a_bad_file_is_refused_with_a_clear_message(data: bytes, media_type: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        parser.parse(data, media_type, LIMITS)
    assert caught.value.field == "data"


def test_deeply_nested_mail_parts_are_too_many() -> None:
    data = "Subject: x\n" + "".join(f'Content-Type: multipart/mixed; boundary="b{i}"\n\n--b{i}\n' for i in range(3000))
    with pytest.raises(TooLarge, match="more than 500 parts"):
        parser.parse(data.encode(), formats.EML, LIMITS)


def test_rst_with_exponential_substitutions_is_stopped() -> None:
    # Each substitution is ten of the next: 10^12 words, whatever the machine.
    text = "|a0|\n\n" + "".join(f".. |a{i}| replace:: {f'|a{i + 1}| ' * 10}\n" for i in range(12))
    with pytest.raises(InvalidArgument, match=r"took longer than 1 s|cannot be read as RST"):
        isolation.parse(text.encode(), "rst", replace(LIMITS, seconds=1))


def test_macros_of_a_workbook_are_ignored() -> None:
    book = files.xlsx({"A": [["Name", "City"], ["An", "Hue"]]})
    parts = files.with_part(book, "xl/workbook.xml", lambda xml: xml)
    with_macros = files.zipped(
        {**_parts(parts), "xl/vbaProject.bin": b"Sub AutoOpen()\nShell evil\nEnd Sub"},
    )
    assert "evil" not in "".join(texts(xlsx.parse(with_macros, BOUND)[1]))


def _parts(data: bytes) -> dict[str, str | bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_workbook_written_by_openpyxl_is_read_too() -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["Tên", "Tuổi"])
    book.active.append(["An", 5])
    book.properties.title = "Sổ"
    stream = io.BytesIO()
    book.save(stream)
    title, blocks = xlsx.parse(stream.getvalue(), BOUND)
    assert title == "Sổ"
    assert texts(blocks)[1:] == ["Tên: An; Tuổi: 5"]
