"""Office files and e-books are ZIP archives of XML: opened within bounds, and their XML read without entities."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lxml import etree

from genaifactory_common.errors import InvalidArgument, TooLarge

_MAX_PARTS = 10_000
_OLE_MAGIC = b"\xd0\xcf\x11\xe0"
_ENCRYPTED_FLAG = 0x1


@dataclass(frozen=True)
class Archive:
    """An open archive whose parts together stay within their bound."""

    kind: str
    zip: zipfile.ZipFile

    def has(self, name: str) -> bool:
        """Whether it holds the part."""
        return name in self.zip.NameToInfo

    def read(self, name: str) -> bytes:
        """A part's bytes. Raises InvalidArgument when it is missing."""
        if not self.has(name):
            raise InvalidArgument(
                f"The {self.kind} is damaged: it lacks its part '{name[:100]}'; save it again.", field="data"
            )
        return self.zip.read(name)

    def xml(self, name: str) -> etree._Element:
        """A part's root element; nothing outside the part is read, and its entities stay as they are."""
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        return etree.fromstring(self.read(name), parser)


@contextmanager
def opened(data: bytes, kind: str, max_unpacked_bytes: int, *, program: str = "") -> Iterator[Archive]:
    """Opens the file. Raises InvalidArgument (encrypted), TooLarge, and whatever zipfile does on damage.

    kind: for messages, and the ending to save it as. program: of Microsoft's, whose old or
    encrypted files are no archives.
    """
    if program and data.startswith(_OLE_MAGIC):
        raise InvalidArgument(
            f"The document is encrypted or in {program}'s old format; save it as .{kind.lower()} without a password.",
            field="data",
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        # The sizes in the directory bind: zipfile reads no more of a part than they say.
        if len(parts) > _MAX_PARTS or sum(part.file_size for part in parts) > max_unpacked_bytes:
            raise TooLarge(
                f"The {kind} unpacks to more than {max_unpacked_bytes} bytes or {_MAX_PARTS} parts; split it.",
                field="data",
            )
        if any(part.flag_bits & _ENCRYPTED_FLAG for part in parts):
            raise InvalidArgument(f"The {kind} is encrypted; save it without a password.", field="data")
        yield Archive(kind, archive)
