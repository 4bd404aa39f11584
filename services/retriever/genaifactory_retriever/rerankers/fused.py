"""The order of the found passages by fusion alone."""

from __future__ import annotations

from collections.abc import Sequence

from genaifactory_retriever.encoding import EncodedQuery
from genaifactory_retriever.rerankers.protocol import Hit


class FusedOrder:
    """Keeps the order of the fusion."""

    reads = 0

    async def rerank(self, text: str, query: EncodedQuery, hits: Sequence[Hit]) -> Sequence[Hit]:
        """The hits, unchanged."""
        return hits
