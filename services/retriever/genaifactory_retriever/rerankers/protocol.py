"""What a reranker does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from genaifactory_retriever.encoding import EncodedQuery
from genaifactory_retriever.vectors.protocol import Candidate, Passage


class Hit(NamedTuple):
    """A passage that was found."""

    passage: Passage
    score: float
    """Higher is better; comparable only within one result."""
    candidate: Candidate
    """With the score of each method."""


class Reranker(Protocol):
    """Orders the best passages of the fusion."""

    @property
    def reads(self) -> int:
        """How many passages it reads, also beyond the number that a search returns; bounds its time."""
        ...

    async def rerank(self, text: str, query: EncodedQuery, hits: Sequence[Hit]) -> Sequence[Hit]:
        """The hits, best first, with its own scores. It may leave some out and must add none, which the caller might
        not be allowed to see. text, query: the query as sent, and encoded. Raises Unavailable."""
        ...
