"""The library's values: documents with their origin, their contents in each index, and index versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from genaifactory_common import specs
from genaifactory_retriever.documents import Document, Section

State = Literal["building", "ready", "active", "previous", "failed", "dropped"]
OPEN_STATES: tuple[State, ...] = ("building", "ready", "active", "previous")
"""States of index versions that hold vectors and get every write."""


@dataclass(frozen=True)
class Origin:
    """The file of a document, and when it was stored; empty for documents stored before this was recorded."""

    media_type: str = ""
    size_bytes: int = 0
    """Of the file."""
    store_time: float = 0.0
    """Seconds since the epoch."""
    source: str = ""
    """Where it was read from, as the upload's header declares."""


@dataclass(frozen=True)
class StoredDocument:
    """A stored document, with all that an index needs."""

    tenant: str
    document_id: str
    source_hash: str
    """Of the bytes and the header: equal means unchanged."""
    content_hash: str
    """Of the cleaned text, the access list and the metadata: equal means duplicate."""
    title: str
    uri: str
    language: str
    """As declared; empty: detected for each passage."""
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
class Access:
    """Who may see a stored document."""

    document_id: str
    tenant: str
    allowed_groups: tuple[str, ...]
    """Empty: everybody of the tenant."""


@dataclass(frozen=True)
class Known:
    """A stored document's state, without its text."""

    document_id: str
    revision: int
    indexed: bool
    """False: a duplicate; another document of the same content has the passages."""
    source_hash: str
    content_hash: str


@dataclass(frozen=True)
class Contents:
    """One revision's part of an index version's statistics."""

    passages: int
    term_passages: Mapping[int, int]
    """Term id -> passages that contain it."""


@dataclass(frozen=True)
class Embedding:
    """The embedder that made the vectors of an index version. Vectors of another one cannot be compared with them."""

    embedder: specs.AnyEmbedder
    """As factory.yaml had it."""
    dimensions: int
    digest: str
    """See Embedder."""


@dataclass(frozen=True)
class Index:
    """An index version."""

    id: int
    knowledge_base: str
    version: str
    state: State
    chunk_tokens: int
    overlap_tokens: int
    create_time: float
    """Seconds since the epoch."""
    idempotency_key: str
    embedding: Embedding | None
    """None: MiniLM, of a platform that did not record it yet."""


@dataclass(frozen=True)
class Put:
    """A document to make live, with its contents in each open index version; none: a duplicate."""

    revision: int
    document: StoredDocument
    contents: Mapping[int, Contents]
    """Index id -> contents."""
    indexed: bool = True
