"""The protocol of a vector store: points with a dense and a lexical vector, searched under a filter.

Implementations: `edge` (Qdrant in this process) and `qdrant` (a Qdrant server).
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
COMPONENT_BYTES = 12
"""Upper bound of a file's growth for each component of a vector."""
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
    """The payload of a point."""

    tenant: str
    allowed_groups: tuple[str, ...]
    """Empty: all callers of the tenant."""
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
    """The filter of a search; the store applies it inside the query."""

    tenant: str
    groups: tuple[str, ...]
    """Of the caller: matches passages with one of them, and passages without groups."""
    hidden: frozenset[int] = frozenset()
    """Revisions that are not live."""
    language: str = ""
    """Empty: any."""
    metadata: tuple[tuple[str, str], ...] = ()
    """All of them."""


@dataclass(frozen=True)
class Candidate:
    """A point that one of the methods found, with the scores of all requested methods."""

    id: int
    dense: float = 0.0
    """Cosine with the query."""
    lexical: float = 0.0
    """0 when the passage contains no term of the query."""


class Vectors(Protocol):
    """A vector store. Raises Unavailable when it cannot answer. One writer at a time for each index."""

    owned: bool
    """Whether it is on this process's own disk: a damaged index may be rebuilt from the library."""

    async def create(self, index: str, dimensions: int) -> None:
        """Creates an empty index for dense vectors of `dimensions` components; an existing one is emptied."""

    async def open(self, index: str) -> None:
        """Opens an existing index."""

    async def drop(self, index: str) -> None:
        """Deletes an index; an unknown one is no error."""

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        """Stores points; they are on disk when it returns."""

    async def delete(self, index: str, revisions: Iterable[int]) -> None:
        """Deletes the points of revisions, on disk when it returns."""

    async def search(
        self, index: str, *, dense: list[float] | None, lexical: Sparse | None, where: Where, limit: int
    ) -> list[Candidate]:
        """The best `limit` points for each given vector; each with the scores for both, when both are given."""

    async def passages(self, index: str, ids: Sequence[int]) -> dict[int, Passage]:
        """The payloads of points, by id."""

    async def points(self, index: str, ids: Sequence[int]) -> list[Point]:
        """The points of these ids, vectors included."""

    async def count(self, index: str) -> int:
        """The number of points in an index."""

    async def close(self) -> None:
        """Releases all resources; stored points stay."""


def point_id(revision: int, ordinal: int) -> int:
    """The id of a revision's passage. It is deterministic, so a repeated write changes nothing."""
    return revision << _ORDINAL_BITS | ordinal


def metadata_value(key: str, value: str) -> str:
    """A metadata entry as one keyword, so that one payload index serves all keys."""
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
    """The passage of a point's payload. Raises Unavailable for a payload of another form."""
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
