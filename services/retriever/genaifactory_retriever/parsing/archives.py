"""Office files and e-books as ZIP archives of XML: opens them within bounds, and parses XML without entities."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from lxml import etree

from genaifactory_common.errors import InvalidArgument
from genaifactory_retriever import bounds

_OLE_MAGIC = b"\xd0\xcf\x11\xe0"
_ENCRYPTED_FLAG = 0x1


class Archive:
    """An open archive. Bounds count all reads, also repeated ones of the same part."""

    def __init__(self, kind: str, archive: zipfile.ZipFile, max_unpacked_bytes: int, max_tags: int) -> None:
        self.kind = kind
        self._zip = archive
        self._parts = bounds.Count(kind, "parts", bounds.PARTS)
        self._bytes = bounds.Count(kind, "bytes when unpacked", max_unpacked_bytes)
        self._tags = bounds.Count(kind, "tags", max_tags)

    def has(self, name: str) -> bool:
        """Whether it contains the part."""
        return name in self._zip.NameToInfo

    def read(self, name: str) -> bytes:
        """A part's bytes. Raises InvalidArgument when it is missing, TooLarge."""
        if not self.has(name):
            raise InvalidArgument(
                f"The {self.kind} is damaged: it lacks its part '{name[:100]}'; save it again.", field="data"
            )
        self._parts.add()
        self._bytes.add(self._zip.NameToInfo[name].file_size)
        part = self._zip.read(name)
        if b"<" in part.lstrip()[:4]:  # XML, perhaps after a byte order mark; not images and fonts
            self._tags.add(part.count(b"<"))
        return part

    def check(self) -> None:
        """Counts every part, for a library that reads them itself. Raises TooLarge."""
        for name in self._zip.NameToInfo:
            self.read(name)

    def xml(self, name: str) -> etree._Element:
        """A part's root element; no external data is read, and entities are not resolved."""
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        return etree.fromstring(self.read(name), parser)


@contextmanager
def opened(
    data: bytes, kind: str, max_unpacked_bytes: int, *, program: str = "", max_tags: int = bounds.TAGS
) -> Iterator[Archive]:
    """Opens the file. Raises InvalidArgument (encrypted), TooLarge, and whatever zipfile does on damage.

    kind: for messages, where it is the ending, too. program: the one of Microsoft whose old or encrypted files are no
    archives.
    """
    if program and data.startswith(_OLE_MAGIC):
        raise InvalidArgument(
            f"The document is encrypted or in {program}'s old format; save it as .{kind.lower()} without a password.",
            field="data",
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        # The declared sizes suffice: zipfile reads no more of a part than these.
        bounds.require(len(parts), bounds.PARTS, kind, "parts")
        unpacked = sum(part.file_size for part in parts)
        bounds.require(unpacked, max_unpacked_bytes, kind, "bytes when unpacked")
        if any(part.flag_bits & _ENCRYPTED_FLAG for part in parts):
            raise InvalidArgument(f"The {kind} is encrypted; save it without a password.", field="data")
        yield Archive(kind, archive, max_unpacked_bytes, max_tags)
