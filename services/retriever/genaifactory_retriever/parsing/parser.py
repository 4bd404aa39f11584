"""Parses files into documents: finds the type, decodes, and parses within bounds; errors name what is wrong."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from genaifactory_common import decoding, formats
from genaifactory_common.errors import InvalidArgument
from genaifactory_retriever.documents import Block, Document, assemble, bounded, require_text
from genaifactory_retriever.parsing import isolation
from genaifactory_retriever.parsing.formats import html, markdown, source
from genaifactory_retriever.parsing.formats import text as parse_text
from genaifactory_retriever.parsing.limits import Limits

_ISOLATED: dict[str, isolation.Kind] = {
    formats.PDF: "pdf",
    formats.DOCX: "docx",
    formats.XLSX: "xlsx",
    formats.PPTX: "pptx",
    formats.EPUB: "epub",
    formats.CSV: "csv",
    formats.TSV: "tsv",
    formats.EML: "eml",
}
# Their headings name sheets and definitions, not the document.
_HEADINGS_ARE_PARTS = formats.SOURCE | {formats.XLSX}
_QUICK_CHARACTERS = 200_000
_QUICK_NESTING = 1000


def media_type_of(media_type: str, uri: str) -> str:
    """The file's type; from the uri's ending when media_type is empty. Raises InvalidArgument."""
    if media_type:
        known = media_type.partition(";")[0].strip().lower()
        if known not in formats.MEDIA_TYPES:
            raise InvalidArgument(
                f"media_type '{media_type[:100]}' is not supported; use one of {', '.join(formats.MEDIA_TYPES)}.",
                field="media_type",
            )
        return known
    ending = PurePosixPath(unquote(urlsplit(uri).path)).suffix.lower()
    if ending not in formats.BY_ENDING:
        raise InvalidArgument(
            f"The ending of '{uri[-100:]}' names no supported type; set media_type, or end the uri in one of "
            f"{', '.join(sorted(formats.BY_ENDING))}.",
            field="media_type",
        )
    return formats.BY_ENDING[ending]


def parse(data: bytes, media_type: str, limits: Limits) -> Document:
    """The document of a file. media_type: of `media_type_of`. Blocks for up to limits.seconds.

    Raises InvalidArgument when the file is not of its type or holds no text, TooLarge beyond a limit.
    """
    if not data:
        raise InvalidArgument("The document is empty; it must hold text.", field="data")
    title, blocks = _parsed(data, media_type, limits)
    blocks = bounded(blocks, limits.text_characters)
    document = assemble(blocks, title, heading_is_title=media_type not in _HEADINGS_ARE_PARTS)
    if not document.text:
        raise InvalidArgument("The document holds no readable text; scanned pages need OCR first.", field="data")
    require_text(len(document.text), limits.text_characters)
    return document


def _parsed(data: bytes, media_type: str, limits: Limits) -> tuple[str, list[Block]]:
    if media_type in _ISOLATED:
        return isolation.parse(data, _ISOLATED[media_type], limits)
    if media_type == "text/html":
        return _markup(decoding.decode(data, decoding.declared_charset(data)), "html", limits)
    if media_type == "text/markdown":
        return _markup(decoding.decode(data), "markdown", limits)
    text = decoding.decode(data)
    require_text(len(text), limits.text_characters)  # before cleaning, which shortens it little
    if media_type == formats.RST:
        return isolation.parse(text.encode(), "rst", limits)
    return "", source.parse(text) if media_type in formats.SOURCE else parse_text.parse(text)


def _markup(text: str, kind: Literal["html", "markdown"], limits: Limits) -> tuple[str, list[Block]]:
    """Parses short and flat pages in this process: starting another takes longer than parsing most pages."""
    if len(text) > _QUICK_CHARACTERS or html.nesting(text) > _QUICK_NESTING:
        return isolation.parse(text.encode(), kind, limits)
    return html.parse(text) if kind == "html" else markdown.parse(text)
