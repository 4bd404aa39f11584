"""The port to a vector store: points with a dense and a lexical vector, searched under a filter.

Two stores stand behind it: `edge` (Qdrant in this process) and `qdrant` (a Qdrant server).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genaifactory_common.errors import Unavailable

DENSE = "dense"
LEXICAL = "lexical"

TENANT = "tenant"
GROUPS = "groups"
REVISION = "revision"
LANGUAGE = "language"
METADATA = "metadata"
KEYWORD_FIELDS = (TENANT, GROUPS, LANGUAGE, METADATA)
"""Payload fields that are filtered by exact value; REVISION is an integer."""

_ORDINAL_BITS = 20
MAX_PASSAGES = 1 << _ORDINAL_BITS
"""Of one document."""


@dataclass(frozen=True)
class Sparse:
    """A sparse vector."""

    indices: list[int]
    """Ascending."""
    values: list[float]


@dataclass(frozen=True)
class Passage:
    """What a point carries besides its vectors."""

    tenant: str
    allowed_groups: tuple[str, ...]
    """Empty: everybody of the tenant."""
    revision: int
    passage_id: str
    document_id: str
    text: str
    title: str
    uri: str
    headings: tuple[str, ...]
    start: int
    end: int
    language: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """A passage with its vectors."""

    id: int
    dense: list[float]
    """As many components as its index has dimensions, of unit length."""
    lexical: Sparse
    passage: Passage


@dataclass(frozen=True)
class Where:
    """What a search may see; the store applies it inside the query."""

    tenant: str
    groups: tuple[str, ...]
    """Of the caller: sees what names one of them, and what names none."""
    hidden: frozenset[int] = frozenset()
    """Revisions that are not live."""
    language: str = ""
    """Empty: any."""
    metadata: tuple[tuple[str, str], ...] = ()
    """All of them."""


@dataclass(frozen=True)
class Candidate:
    """A point that one of both methods found, with both scores where both were asked for."""

    id: int
    dense: float = 0.0
    """Cosine with the query."""
    lexical: float = 0.0
    """0 when no term of the query stands in the passage."""


class Vectors(Protocol):
    """A vector store. Raises Unavailable when it cannot answer. One writer at a time for each index."""

    owned: bool
    """The process alone holds it, on its own disk: an index that is damaged may be made again from the library."""

    async def create(self, index: str, dimensions: int) -> None:
        """Makes an empty index for dense vectors of so many components; one that exists is emptied."""

    async def open(self, index: str) -> None:
        """Opens an index that exists."""

    async def drop(self, index: str) -> None:
        """Deletes an index; an unknown one is no error."""

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        """Stores points; they are on disk when it returns."""

    async def delete(self, index: str, revisions: Iterable[int]) -> None:
        """Deletes the points of revisions, on disk when it returns."""

    async def search(
        self, index: str, *, dense: list[float] | None, lexical: Sparse | None, where: Where, limit: int
    ) -> list[Candidate]:
        """The best `limit` points of each given vector; what one finds has the other's score too."""

    async def passages(self, index: str, ids: Sequence[int]) -> dict[int, Passage]:
        """What the points of these ids carry."""

    async def points(self, index: str, ids: Sequence[int]) -> list[Point]:
        """The points of these ids, vectors included."""

    async def count(self, index: str) -> int:
        """All points of an index."""

    async def close(self) -> None:
        """Lets go of everything; nothing is lost."""


def point_id(revision: int, ordinal: int) -> int:
    """The id of a revision's passage; the same passage always gets the same, so writing twice is writing once."""
    return revision << _ORDINAL_BITS | ordinal


def metadata_value(key: str, value: str) -> str:
    """One metadata entry as one keyword, so that any key can be filtered by one index."""
    return f"{key}\x1f{value}"


def to_payload(passage: Passage) -> dict[str, object]:
    """The point's payload."""
    return {
        TENANT: passage.tenant,
        GROUPS: list(passage.allowed_groups),
        REVISION: passage.revision,
        LANGUAGE: passage.language,
        METADATA: [metadata_value(key, value) for key, value in sorted(passage.metadata.items())],
        "passage_id": passage.passage_id,
        "document_id": passage.document_id,
        "text": passage.text,
        "title": passage.title,
        "uri": passage.uri,
        "headings": list(passage.headings),
        "start": passage.start,
        "end": passage.end,
    }


def from_payload(payload: Mapping[str, Any]) -> Passage:
    """The passage of a point's payload. Raises Unavailable when the store gives back something else."""
    try:
        return _passage(payload)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"The vector store holds a point that is no passage ({type(error).__name__}).") from error


def _passage(payload: Mapping[str, Any]) -> Passage:
    pairs = (entry.partition("\x1f") for entry in payload[METADATA])
    return Passage(
        tenant=str(payload[TENANT]),
        allowed_groups=tuple(payload[GROUPS]),
        revision=int(payload[REVISION]),
        passage_id=str(payload["passage_id"]),
        document_id=str(payload["document_id"]),
        text=str(payload["text"]),
        title=str(payload["title"]),
        uri=str(payload["uri"]),
        headings=tuple(payload["headings"]),
        start=int(payload["start"]),
        end=int(payload["end"]),
        language=str(payload[LANGUAGE]),
        metadata={key: value for key, _, value in pairs},
    )
