"""PPTX to blocks: each visible slide under its title, its text, tables and notes."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

from lxml import etree

from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing import archives, tables
from genaifactory_retriever.parsing.archives import Archive

_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_RELATION = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"
_DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_PRESENTATION = "ppt/presentation.xml"
_CORE = "docProps/core.xml"
_TITLES = ("title", "ctrTitle")
# Placeholders without content of their own: slide number, date, footer, header, the slide's image on its notes.
_FURNITURE = ("sldNum", "dt", "ftr", "hdr", "sldImg")


def parse(data: bytes, max_unpacked_bytes: int) -> tuple[str, Iterable[Block]]:
    """Title and blocks. Raises InvalidArgument, TooLarge, and whatever lxml does on damage."""
    with archives.opened(data, "PPTX", max_unpacked_bytes, program="PowerPoint") as archive:
        title = archive.xml(_CORE).findtext(_DC_TITLE) if archive.has(_CORE) else ""
        size = tables.Size("PPTX")
        slides = [_slide(archive, number, name, size) for number, name in _slides(archive)]
        return title or "", [block for slide in slides for block in slide]


def _slides(archive: Archive) -> Iterator[tuple[int, str]]:
    """Number and part of each slide, in the order of presentation."""
    targets = {relation.get("Id"): target for relation, target in _relations(archive, _PRESENTATION)}
    for number, slide in enumerate(archive.xml(_PRESENTATION).iter(f"{_P}sldId"), start=1):
        yield number, targets.get(slide.get(f"{_R}id"), "")


def _relations(archive: Archive, name: str) -> list[tuple[etree._Element, str]]:
    """A part's relations, each with the part that it refers to."""
    folder, file = posixpath.split(name)
    relations = f"{folder}/_rels/{file}.rels"
    if not archive.has(relations):
        return []
    return [
        (relation, posixpath.normpath(posixpath.join("/", folder, relation.get("Target", "")))[1:])
        for relation in archive.xml(relations).iter(_RELATION)
        if relation.get("TargetMode") != "External"
    ]


def _slide(archive: Archive, number: int, name: str, size: tables.Size) -> Iterator[Block]:
    root = archive.xml(name)
    if root.get("show") in ("0", "false"):
        return
    shapes = [(_placeholder(shape), shape) for shape in root.iter(f"{_P}sp", f"{_P}graphicFrame")]
    title = " ".join(text for kind, shape in shapes if kind in _TITLES for text in _paragraphs(shape))
    yield Block(title or f"Slide {number}", 1)
    for kind, shape in shapes:
        if kind not in (*_TITLES, *_FURNITURE):
            yield from _shape(shape, size)
    for relation, target in _relations(archive, name):
        if (relation.get("Type") or "").endswith("/notesSlide"):
            yield from _notes(archive.xml(target))


def _notes(root: etree._Element) -> Iterator[Block]:
    for shape in root.iter(f"{_P}sp"):
        if _placeholder(shape) == "body":
            yield from (Block(text) for text in _paragraphs(shape))


def _shape(shape: etree._Element, size: tables.Size) -> Iterator[Block]:
    for table in shape.iter(f"{_A}tbl"):
        rows = ([" ".join(_paragraphs(cell)) for cell in row.iter(f"{_A}tc")] for row in table.iter(f"{_A}tr"))
        yield from tables.blocks(rows, size)
    if shape.tag == f"{_P}sp":
        # As list items: a short line alone would be read as a heading and never quoted.
        yield from (Block(f"- {text}") for text in _paragraphs(shape))


def _placeholder(shape: etree._Element) -> str:
    """The type of the placeholder; "" for a shape that is none."""
    found = next(shape.iter(f"{_P}ph"), None)
    return "" if found is None else found.get("type") or "obj"


def _paragraphs(shape: etree._Element) -> Iterator[str]:
    for paragraph in shape.iter(f"{_A}p"):
        pieces = (" " if piece.tag == f"{_A}br" else piece.text or "" for piece in paragraph.iter(f"{_A}t", f"{_A}br"))
        if text := "".join(pieces).strip():
            yield text
