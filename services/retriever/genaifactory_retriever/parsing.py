"""Files to documents: tells the type, decodes, and parses within bounds; a bad file is an error that says why."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from genaifactory_common import formats
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_retriever import decoding, isolation, parse_html, parse_markdown, parse_source, parse_text
from genaifactory_retriever.documents import Block, Document, assemble
from genaifactory_retriever.parse_limits import Limits

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
# Sheets, and definitions of source code.
_HEADINGS_ARE_PARTS = formats.SOURCE | {formats.XLSX}
_QUICK_CHARACTERS = 1_000_000
_QUICK_NESTING = 1000
_TAG = re.compile(r"<(/?)([a-zA-Z]+)")
# Elements that have no end, or that the next of their kind ends: without end tags they do not nest.
_SELF_CLOSED = frozenset("area base br col dd dt embed hr img input li link meta p source td th tr wbr".split())  # noqa: SIM905


def media_type_of(media_type: str, uri: str) -> str:
    """The type to parse as; by the uri's ending when media_type is empty. Raises InvalidArgument."""
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
            f"The type of '{uri[-100:]}' is not known by its ending; give media_type, or end the uri in one of "
            f"{', '.join(sorted(formats.BY_ENDING))}.",
            field="media_type",
        )
    return formats.BY_ENDING[ending]


def parse(data: bytes, media_type: str, limits: Limits) -> Document:
    """The document in a file of a type that `media_type_of` names. Blocks for up to limits.seconds.

    Raises InvalidArgument when the file is not what its type says or holds no text, TooLarge beyond a limit.
    """
    if not data:
        raise InvalidArgument("The document is empty; it must hold text.", field="data")
    title, blocks = _parsed(data, media_type, limits)
    document = assemble(blocks, title, heading_is_title=media_type not in _HEADINGS_ARE_PARTS)
    if not document.text:
        raise InvalidArgument("The document holds no readable text; scanned pages need OCR first.", field="data")
    if len(document.text) > limits.text_characters:
        raise TooLarge(
            f"The document holds {len(document.text)} characters of text; at most {limits.text_characters} are taken. "
            "Split it.",
            field="data",
        )
    return document


def _parsed(data: bytes, media_type: str, limits: Limits) -> tuple[str, list[Block]]:
    if media_type in _ISOLATED:
        return isolation.parse(data, _ISOLATED[media_type], limits)
    if media_type == "text/html":
        return _markup(decoding.decode(data, parse_html.declared_charset(data)), "html", limits)
    if media_type == "text/markdown":
        return _markup(decoding.decode(data), "markdown", limits)
    if media_type == formats.RST:
        return isolation.parse(decoding.decode(data).encode(), "rst", limits)
    if media_type in formats.SOURCE:
        return "", parse_source.parse(decoding.guessed(data))
    return "", parse_text.parse(decoding.decode(data))


def _markup(text: str, kind: Literal["html", "markdown"], limits: Limits) -> tuple[str, list[Block]]:
    """Parsed here when that is sure to be quick; starting a process takes longer than most pages."""
    if len(text) > _QUICK_CHARACTERS or _nesting(text) > _QUICK_NESTING:
        return isolation.parse(text.encode(), kind, limits)
    return parse_html.parse(text) if kind == "html" else parse_markdown.parse(text)


def _nesting(text: str) -> int:
    """How deep elements may stand inside each other; an HTML parser's time grows with its square."""
    depth = deepest = 0
    for closing, tag in _TAG.findall(text):
        if tag.lower() not in _SELF_CLOSED:
            depth = max(0, depth - 1) if closing else depth + 1
            deepest = max(deepest, depth)
    return deepest
