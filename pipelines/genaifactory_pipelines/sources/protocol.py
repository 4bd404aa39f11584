"""What a source of documents returns, whatever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """A document's bytes, 1 to formats.MAX_DOCUMENT_BYTES."""

    data: bytes
    media_type: str = ""
    """Empty: the ending of the document's uri determines it."""


class Skipped(Protocol):
    """Something in a source that is not read."""

    @property
    def name(self) -> str:
        """In the form of a document's id; a folder's ends in '/'."""

    @property
    def why(self) -> str:
        """The reason in words."""


class Document(Protocol):
    """One document of a source."""

    @property
    def document_id(self) -> str:
        """Within the knowledge base."""

    @property
    def source_name(self) -> str:
        """Of its source, as it is stored with the document."""

    @property
    def uri(self) -> str:
        """Where it is from: an http(s) URL or a relative path. Answers cite it."""

    async def content(self) -> Content | str:
        """Reads it; a text is why it cannot be read: "is empty"."""


@dataclass(frozen=True)
class Listing:
    """What a source holds now."""

    documents: Sequence[Document]
    skipped: Sequence[Skipped] = ()
    unknown: tuple[str, ...] = ()
    """Beginnings of the ids of documents that may be there too: they could not be looked for."""
