"""Files to documents: tells the type, decodes, and parses within bounds; a bad file is an error that says why."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever import isolation, parse_html
from genaifactory_retriever.documents import Block, Document, assemble

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PDF = "application/pdf"
_BY_ENDING = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".pdf": PDF,
    ".docx": DOCX,
}
_KNOWN = (*sorted(set(_BY_ENDING.values())),)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
class Limits:
    """What one document may cost."""

    text_characters: int
    """Code points of the cleaned text."""
    pages: int
    unpacked_bytes: int
    """Of a DOCX's parts together."""
    seconds: float
    """Until the parser of a PDF or DOCX is stopped."""
    memory_bytes: int
    """Address space of that parser."""


def media_type_of(media_type: str, uri: str) -> str:
    """The type to parse as; by the uri's ending when media_type is empty. Raises InvalidArgument."""
    if media_type:
        known = media_type.partition(";")[0].strip().lower()
        if known not in _KNOWN:
            raise InvalidArgument(
                f"media_type '{media_type[:100]}' is not supported; use one of {', '.join(_KNOWN)}.", field="media_type"
            )
        return known
    ending = PurePosixPath(unquote(urlsplit(uri).path)).suffix.lower()
    if ending not in _BY_ENDING:
        raise InvalidArgument(
            f"The type of '{uri[-100:]}' is not known by its ending; give media_type, or end the uri in one of "
            f"{', '.join(sorted(_BY_ENDING))}.",
            field="media_type",
        )
    return _BY_ENDING[ending]


def parse(data: bytes, media_type: str, limits: Limits) -> Document:
    """The document in a file of a type that `media_type_of` names. Blocks; a PDF or DOCX is parsed in another process.

    Raises InvalidArgument when the file is not what its type says or holds no text, TooLarge beyond a limit.
    """
    if not data:
        raise InvalidArgument("The document is empty; it must hold text.", field="data")
    if media_type in (PDF, DOCX):
        title, blocks = isolation.parse(data, "pdf" if media_type == PDF else "docx", limits)
    elif media_type == "text/html":
        title, blocks = parse_html.parse(_decode(data, parse_html.declared_charset(data)))
    elif media_type == "text/markdown":
        title, blocks = _markdown(_decode(data))
    else:
        title, blocks = "", [Block(piece) for piece in _BLANK_LINES.split(_decode(data).replace("\r\n", "\n"))]
    document = assemble(blocks, title)
    if not document.text:
        raise InvalidArgument("The document holds no readable text; scanned pages need OCR first.", field="data")
    if len(document.text) > limits.text_characters:
        raise TooLarge(
            f"The document holds {len(document.text)} characters of text; at most {limits.text_characters} are taken. "
            "Split it.",
            field="data",
        )
    return document


def _decode(data: bytes, declared: str | None = None) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            declared = encoding
    try:
        text = data.decode(declared or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise InvalidArgument(
            f"The document is not {(declared or 'UTF-8')[:40]} text{where}; save it as UTF-8.", field="data"
        ) from None
    if "\x00" in text:
        raise InvalidArgument("The document holds NUL bytes: it is not text of this type.", field="data")
    return text


def _markdown(text: str) -> tuple[str, list[Block]]:
    """Through HTML, so that inline marks, tables and embedded HTML need no second set of rules."""
    from markdown_it import MarkdownIt

    title = ""
    text = text.replace("\r\n", "\n")
    if front := _FRONT_MATTER.match(text):
        if named := _FRONT_TITLE.search(front.group(1)):
            title = named.group(1)
        text = text[front.end() :]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    found, blocks = parse_html.parse(html)
    return title or found, blocks
