"""A parsed document: cleaned text, and its sections under their headings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from genaifactory_retriever import bounds


@dataclass(frozen=True)
class Block:
    """A paragraph, list item, table row or listing as parsed, in reading order."""

    text: str
    level: int = 0
    """1 to 6 for a heading, 0 for anything else."""
    verbatim: bool = False
    """A listing, whose line breaks and spaces are kept."""


@dataclass(frozen=True)
class Section:
    """Text under one heading, up to the next heading of any level."""

    headings: tuple[str, ...]
    """Outermost first, the section's own last; empty before the first heading."""
    start: int
    """First code point in Document.text."""
    end: int
    """One past the last."""


@dataclass(frozen=True)
class Document:
    """A cleaned document. Headings are not part of `text`; they are in the sections."""

    title: str
    text: str
    sections: tuple[Section, ...]


_BLOCK_GAP = "\n\n"
_MAX_HEADING_CHARACTERS = 300
_MAX_TITLE_CHARACTERS = 300

# Text that people cannot see must not reach a model: zero-width and bidirectional controls, soft hyphens, tags.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SPACES = re.compile(r"\s+")
_TRAILING = re.compile(r"[^\S\n]+\n")


def clean(text: str, *, verbatim: bool = False) -> str:
    """The text in NFC, without invisible and control characters; runs of white space are one space, unless verbatim."""
    text = unicodedata.normalize("NFC", text)
    text = _CONTROL.sub(" ", _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
    if verbatim:
        return _TRAILING.sub("\n", text.replace("\u00a0", " ").expandtabs(4)).strip("\n").rstrip()
    return _SPACES.sub(" ", text).strip()


def require_text(characters: int, most: int) -> None:
    """Raises TooLarge when a document holds more than `most` characters."""
    bounds.require(characters, most, "document", "characters of text")


def bounded(blocks: Iterable[Block], max_characters: int) -> list[Block]:
    """All blocks. Raises TooLarge as soon as they, with the gaps between them, exceed `max_characters`."""
    kept: list[Block] = []
    characters = -len(_BLOCK_GAP)
    for block in blocks:
        characters += len(block.text) + len(_BLOCK_GAP)
        require_text(characters, max_characters)
        kept.append(block)
    return kept


def assemble(blocks: list[Block], title: str = "", *, heading_is_title: bool = True) -> Document:
    """Joins blocks into a document.

    title: of the file's metadata; empty: the first heading, when heading_is_title.
    """
    pieces: list[str] = []
    sections: list[Section] = []
    headings: list[tuple[int, str]] = []
    position = section_start = 0
    first_heading = ""

    def close(end: int) -> None:
        if end > section_start:
            sections.append(Section(tuple(text for _, text in headings), section_start, end))

    for block in blocks:
        text = clean(block.text, verbatim=block.verbatim)
        if not text:
            continue
        if block.level:
            close(position)
            text = text[:_MAX_HEADING_CHARACTERS]
            first_heading = first_heading or text
            headings = [(level, above) for level, above in headings if level < block.level] + [(block.level, text)]
            section_start = position + (len(_BLOCK_GAP) if pieces else 0)
            continue
        if pieces:
            pieces.append(_BLOCK_GAP)
            position += len(_BLOCK_GAP)
        pieces.append(text)
        position += len(text)
    close(position)
    if heading_is_title:
        title = clean(title) or first_heading
    return Document(clean(title)[:_MAX_TITLE_CHARACTERS], "".join(pieces), tuple(sections))
