"""EPUB to blocks: its chapters in the order of the spine, each parsed as HTML."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from genaifactory_common import decoding
from genaifactory_common.errors import InvalidArgument
from genaifactory_retriever.documents import Block
from genaifactory_retriever.parsing import archives
from genaifactory_retriever.parsing.archives import Archive
from genaifactory_retriever.parsing.formats import html

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_ROOT_FILE = "{urn:oasis:names:tc:opendocument:xmlns:container}rootfile"
_OPF = "{http://www.idpf.org/2007/opf}"
_DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_CIPHER = "{http://www.w3.org/2001/04/xmlenc#}CipherReference"
_PAGES = ("application/xhtml+xml", "text/html")


def parse(data: bytes, max_unpacked_bytes: int) -> tuple[str, Iterable[Block]]:
    """Title and blocks. Raises InvalidArgument (protected), TooLarge, and whatever lxml does on damage."""
    with archives.opened(data, "EPUB", max_unpacked_bytes) as archive:
        root = next(archive.xml(_CONTAINER).iter(_ROOT_FILE), None)
        if root is None:
            raise InvalidArgument(f"The EPUB is damaged: {_CONTAINER} names no package; save it again.", field="data")
        package = root.get("full-path", "")
        opf = archive.xml(package)
        title = next((found.text or "" for found in opf.iter(_DC_TITLE)), "")
        items = {item.get("id"): item for item in opf.iter(f"{_OPF}item")}
        spine = [items[ref.get("idref")] for ref in opf.iter(f"{_OPF}itemref") if ref.get("idref") in items]
        pages = [
            posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(item.get("href", ""))))
            for item in spine
            if item.get("media-type") in _PAGES and "nav" not in (item.get("properties") or "").split()
        ]
        if _protected(archive).intersection(pages):
            raise InvalidArgument("The EPUB's chapters are encrypted; use a copy without protection.", field="data")
        return title, [block for page in pages for block in _chapter(archive.read(page))]


def _protected(archive: Archive) -> set[str]:
    """Encrypted parts; in books without protection fonts often are."""
    if not archive.has(_ENCRYPTION):
        return set()
    return {unquote(cipher.get("URI", "")) for cipher in archive.xml(_ENCRYPTION).iter(_CIPHER)}


def _chapter(data: bytes) -> Iterator[Block]:
    title, blocks = html.parse(decoding.decode(data, decoding.declared_charset(data)))
    if title and not any(block.level for block in blocks):
        yield Block(title, 1)
    yield from blocks
