"""What the library holds: documents with where they came from, what an index has of each, and index versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from genaifactory_retriever.documents import Document, Section

State = Literal["building", "ready", "active", "previous", "failed", "dropped"]
OPEN_STATES: tuple[State, ...] = ("building", "ready", "active", "previous")
"""Of index versions that hold vectors and take every write."""


@dataclass(frozen=True)
class Origin:
    """What a document was made of, and when; empty for one that was stored before this was kept."""

    media_type: str = ""
    size_bytes: int = 0
    """Of the file."""
    store_time: float = 0.0
    """Seconds since the epoch."""
    source: str = ""
    """Where it was read from, as whoever stored it said."""


@dataclass(frozen=True)
class StoredDocument:
    """A document as it is kept, with all that an index needs of it."""

    tenant: str
    document_id: str
    source_hash: str
    """Of the bytes and everything said about them: the same means unchanged."""
    content_hash: str
    """Of the cleaned text, the access list and the metadata: the same means duplicate."""
    title: str
    uri: str
    language: str
    """As given; empty: each passage's own is detected."""
    metadata: Mapping[str, str]
    allowed_groups: tuple[str, ...]
    text: str
    sections: tuple[Section, ...]
    origin: Origin = Origin()

    @property
    def document(self) -> Document:
        """The cleaned document."""
        return Document(self.title, self.text, self.sections)


@dataclass(frozen=True)
class Known:
    """What is known of a stored document without its text."""

    document_id: str
    revision: int
    indexed: bool
    """False: a duplicate, whose passages another document of the same content provides."""
    source_hash: str
    content_hash: str


@dataclass(frozen=True)
class Contents:
    """What one revision adds to an index version's statistics."""

    passages: int
    term_passages: Mapping[int, int]
    """Term id -> passages that hold it."""


@dataclass(frozen=True)
class Index:
    """An index version."""

    id: int
    knowledge_base: str
    version: str
    state: State
    chunk_tokens: int
    overlap_tokens: int
    embedding_model: str
    create_time: float
    """Seconds since the epoch."""
    idempotency_key: str


@dataclass(frozen=True)
class Put:
    """A document to become live, with what each open index version holds of it; no contents: a duplicate."""

    revision: int
    document: StoredDocument
    contents: Mapping[int, Contents]
    """Index id -> contents."""
    indexed: bool = True
