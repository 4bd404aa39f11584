"""The order of what was found: as fusion left it, or by a second look at the passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from genaifactory_retriever.encoding import EncodedQuery
from genaifactory_retriever.vectors.protocol import Candidate, Passage


class Hit(NamedTuple):
    """A passage that was found."""

    passage: Passage
    score: float
    """The higher, the better; comparable within one answer alone."""
    candidate: Candidate
    """With the score of each method."""


class Reranker(Protocol):
    """Puts the passages that fusion found best in order."""

    @property
    def reads(self) -> int:
        """Passages that it reads where as many were found, more than a search returns; bounds its time."""
        ...

    async def rerank(self, text: str, query: EncodedQuery, hits: Sequence[Hit]) -> Sequence[Hit]:
        """The hits, best first, with its own scores. It may leave some out and adds none: what the caller may see was
        decided before. text, query: as asked, and as encoded. Raises Unavailable."""
        ...


class FusedOrder:
    """The order of fusion, at no cost."""

    reads = 0

    async def rerank(self, text: str, query: EncodedQuery, hits: Sequence[Hit]) -> Sequence[Hit]:
        """The hits as they are."""
        return hits
