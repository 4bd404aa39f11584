"""Searches one snapshot of a knowledge base with both methods, fused and ranked, for passages the caller may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genaifactory_common.identity import Caller
from genaifactory_common.telemetry import Telemetry
from genaifactory_retriever import fusion, lexical
from genaifactory_retriever.embedders.protocol import Embedder
from genaifactory_retriever.encoding import EncodedQuery, Encoder
from genaifactory_retriever.fusion import Mode
from genaifactory_retriever.knowledge import KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.rerankers.protocol import Hit, Reranker
from genaifactory_retriever.stored import Index
from genaifactory_retriever.vectors.protocol import Passage, Sparse, Vectors, Where
from genaifactory_retriever.versions import index_name


@dataclass(frozen=True)
class Query:
    """A search request."""

    text: str
    limit: int
    mode: Mode = Mode.HYBRID
    metadata: Mapping[str, str] | None = None
    """Matches documents with all of these."""
    language: str = ""
    """Of the passage; empty: any."""
    index_version: str = ""
    """Empty: the active one."""


@dataclass(frozen=True)
class SearchResult:
    """Passages, best first, all from one index version."""

    passages: tuple[tuple[Passage, float], ...]
    """With their scores."""
    index_version: str
    term_coverage: float
    """See lexical.coverage."""


class Searcher:
    """Searches any knowledge base."""

    def __init__(
        self,
        library: Library,
        vectors: Vectors,
        encoder: Encoder,
        reranker: Reranker,
        telemetry: Telemetry,
        *,
        candidates: int,
    ) -> None:
        """candidates: passages of each method for the fusion."""
        self._library = library
        self._vectors = vectors
        self._encoder = encoder
        self._reranker = reranker
        self._telemetry = telemetry
        self._candidates = candidates

    async def search(self, knowledge_base: KnowledgeBase, query: Query, caller: Caller) -> SearchResult:
        """Raises NotFound and Conflict about index_version, Unavailable when a store fails, Overloaded."""
        while True:
            index = knowledge_base.snapshots.current.serving(query.index_version)
            with self._telemetry.span("retriever.encode"):
                embedder = knowledge_base.encoding(index).embedder
                encoded, frequencies, passages = await self._encoder.on_query_thread(
                    embedder, self._encode, query, index, embedder, caller.tenant
                )
            # Not before: a write waits for the searches that hold an older snapshot, and an API may be slow.
            with knowledge_base.snapshots.hold() as snapshot:
                if snapshot.serving(query.index_version).id != index.id:
                    continue  # another version serves by now
                hits = await self._hits(
                    query,
                    index,
                    encoded,
                    lexical.query_vector(encoded.weights, frequencies, passages),
                    Where(
                        caller.tenant,
                        caller.groups,
                        snapshot.hidden,
                        query.language,
                        tuple(sorted((query.metadata or {}).items())),
                    ),
                )
            break
        ranked = (await self._reranker.rerank(query.text, encoded, hits))[: query.limit]
        texts = ["\n".join((hit.passage.title, *hit.passage.headings, hit.passage.text)) for hit in ranked]
        covered = lexical.coverage(encoded.words, texts, frequencies, passages)
        return SearchResult(tuple((hit.passage, hit.score) for hit in ranked), index.version, covered)

    async def _hits(self, query: Query, index: Index, encoded: EncodedQuery, words: Sparse, where: Where) -> list[Hit]:
        """The best passages of both methods, fused."""
        sparse = None if query.mode is Mode.DENSE or not words.indices else words
        if encoded.dense is None and sparse is None:
            return []
        with self._telemetry.span("retriever.vectors"):
            candidates = await self._vectors.search(
                index_name(index),
                dense=encoded.dense,
                lexical=sparse,
                where=where,
                limit=max(self._candidates, query.limit),
            )
            fused = fusion.fuse(candidates, query.mode, encoded.language)
            best = fused[: max(query.limit, self._reranker.reads)]
            stored = await self._vectors.passages(index_name(index), [each.id for each, _ in best])
            return [Hit(stored[each.id], score, each) for each, score in best]

    def _encode(
        self, query: Query, index: Index, embedder: Embedder, tenant: str
    ) -> tuple[EncodedQuery, dict[int, int], int]:
        encoded = self._encoder.encode_query(query.text, embedder, dense=query.mode is not Mode.LEXICAL)
        frequencies = self._library.passages_with(index.id, tenant, list(encoded.weights))
        return encoded, frequencies, self._library.totals(index.id, tenant)[1]
