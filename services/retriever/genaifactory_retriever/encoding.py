"""Encodes documents and queries as vectors: chunking, embedders and lexical weights, on bounded threads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

from genaifactory_common import language
from genaifactory_common.concurrency import task_group
from genaifactory_common.english import QUESTION_PHRASES
from genaifactory_common.errors import InvalidArgument, Overloaded, TooLarge
from genaifactory_retriever import analysis, chunking, lexical
from genaifactory_retriever.analysis import Word
from genaifactory_retriever.embedders.protocol import Embedder
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.stored import Contents, StoredDocument
from genaifactory_retriever.vectors import protocol
from genaifactory_retriever.vectors.protocol import Passage, Point, Sparse

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# About 15 KB each.
_CACHED_QUERIES = 1024
# Threads of one API: they wait, and compute nothing. As many questions again may wait for one.
_REMOTE_QUERIES = 32
_REMOTE_PASSAGES = 4
# A third of the scheduler's weight of a query's thread.
_DOCUMENT_NICENESS = 5
_MAX_NICENESS = 19


@dataclass(frozen=True)
class Encoding:
    """How documents are cut and embedded; index versions with equal ones hold equal passages."""

    chunk_tokens: int
    overlap_tokens: int
    embedder: Embedder
    """Compared as an object: Embedders has one for each."""


@dataclass(frozen=True)
class EncodedPassage:
    """A passage with its vectors, not yet part of a revision."""

    chunk: chunking.Chunk
    passage_id: str
    language: str
    dense: list[float]
    lexical: Sparse


@dataclass(frozen=True)
class Encoded:
    """All passages of a document under one encoding."""

    passages: tuple[EncodedPassage, ...]
    contents: Contents

    def points(self, revision: int, document: StoredDocument) -> list[Point]:
        """The document's points as `revision`."""
        return [
            Point(
                protocol.point_id(revision, ordinal),
                encoded.dense,
                encoded.lexical,
                Passage(
                    tenant=document.tenant,
                    allowed_groups=document.allowed_groups,
                    revision=revision,
                    passage_id=encoded.passage_id,
                    document_id=document.document_id,
                    text=encoded.chunk.text,
                    title=document.title,
                    uri=document.uri,
                    headings=encoded.chunk.headings,
                    start=encoded.chunk.start,
                    end=encoded.chunk.end,
                    language=encoded.language,
                    metadata=document.metadata,
                ),
            )
            for ordinal, encoded in enumerate(self.passages)
        ]


@dataclass(frozen=True)
class EncodedQuery:
    """A query for both methods, before the index's statistics are applied."""

    words: tuple[Word, ...]
    """Without phrases that only introduce a question."""
    weights: dict[int, float]
    dense: list[float] | None
    language: str


@dataclass(frozen=True)
class _Piece:
    """A passage without its vectors."""

    chunk: chunking.Chunk
    context: list[str]
    """The title and the headings above it."""

    @property
    def embedded(self) -> str:
        """The model's input."""
        return "\n".join((" > ".join(self.context), self.chunk.text))


class Encoder:
    """Runs embedders on thread pools, so that a query never waits for documents, or for another one's API."""

    def __init__(self, embedders: Embedders, *, document_threads: int, query_threads: int) -> None:
        self.embedders = embedders
        self._document_threads = document_threads
        self._documents = ThreadPoolExecutor(
            document_threads, thread_name_prefix="encode-documents", initializer=_yield_to_queries
        )
        self._queries = ThreadPoolExecutor(query_threads, thread_name_prefix="encode-queries")
        self._remote: WeakKeyDictionary[Embedder, _Remote] = WeakKeyDictionary()
        # Shared by tenants: the result depends on the embedder and the text alone. Ends with the embedder.
        self._encoded: WeakKeyDictionary[Embedder, Callable[[str, bool], EncodedQuery]] = WeakKeyDictionary()

    async def on_document_thread(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Runs blocking work on a document; at most `document_threads` at once."""
        return await asyncio.get_running_loop().run_in_executor(self._documents, work, *arguments)

    async def on_query_thread(
        self, embedder: Embedder, work: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        """Runs blocking work of a query; each API has threads of its own. Raises Overloaded when they are taken."""
        if embedder.is_remote:
            return await self._remote_threads(embedder).query(work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._queries, work, *arguments)

    async def encode(self, document: StoredDocument, encoding: Encoding) -> Encoded:
        """The document's passages, computed on the document threads. Raises InvalidArgument, TooLarge, Unavailable."""
        pieces = await self.on_document_thread(_cut, document, encoding)
        dense = await self._embed([piece.embedded for piece in pieces], encoding.embedder)
        return await self.on_document_thread(_encoded, document, pieces, dense)

    async def _embed(self, texts: list[str], embedder: Embedder) -> list[list[float]]:
        """Vectors in the order of the texts.

        All threads share a document: results are returned in the documents' order, so a long one on one thread would
        leave the others idle once the documents after it are done. A document queues no more work than there are
        threads, so that one upload's long document does not delay another upload.
        """
        found: list[list[float]] = [[] for _ in texts]
        begins = iter(range(0, len(texts), embedder.texts_at_once))
        threads = self._remote_threads(embedder).passages if embedder.is_remote else self._documents
        loop = asyncio.get_running_loop()

        async def work() -> None:
            for begin in begins:
                end = begin + embedder.texts_at_once
                found[begin:end] = await loop.run_in_executor(threads, embedder.embed_passages, texts[begin:end])

        async with task_group() as tasks:
            for _ in range(self._document_threads):
                tasks.create_task(work())
        return found

    def encode_query(self, text: str, embedder: Embedder, *, dense: bool) -> EncodedQuery:
        """For an index version of this embedder. Blocks: call it on a query thread. Raises Unavailable."""
        cached = self._encoded.get(embedder)
        if cached is None:
            # The cache must not hold its own key, or it would never end.
            work = partial(_encode_query, weakref.proxy(embedder))
            cached = self._encoded.setdefault(embedder, lru_cache(maxsize=_CACHED_QUERIES)(work))
        return cached(text, dense)

    def close(self) -> None:
        """Ends the threads after their present work."""
        self._documents.shutdown(wait=False, cancel_futures=True)
        self._queries.shutdown(wait=False, cancel_futures=True)
        for remote in self._remote.values():
            remote.close()

    def _remote_threads(self, embedder: Embedder) -> _Remote:
        found = self._remote.get(embedder)
        if found is None:
            found = self._remote[embedder] = _Remote()
        return found


class _Remote:
    """The threads that wait for one API, so that one that hangs delays no other, and no document of another."""

    def __init__(self) -> None:
        self.passages = ThreadPoolExecutor(_REMOTE_PASSAGES, thread_name_prefix="remote-passages")
        self._queries = ThreadPoolExecutor(_REMOTE_QUERIES, thread_name_prefix="remote-queries")
        self._room = threading.BoundedSemaphore(2 * _REMOTE_QUERIES)

    async def query(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Raises Overloaded."""
        if not self._room.acquire(blocking=False):
            raise Overloaded("Too many questions wait for the embedding API; try again.", retry_after_seconds=1.0)
        asked = self._queries.submit(work, *arguments)
        # Not when this call is cancelled: the thread still waits then.
        asked.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(asked)

    def close(self) -> None:
        """Ends the threads after their present work."""
        self.passages.shutdown(wait=False, cancel_futures=True)
        self._queries.shutdown(wait=False, cancel_futures=True)


def _yield_to_queries() -> None:
    """Lowers this thread's priority (Linux: of the one thread), so that queries come first on a busy processor."""
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + _DOCUMENT_NICENESS
    os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MAX_NICENESS))


def _cut(document: StoredDocument, encoding: Encoding) -> list[_Piece]:
    chunks = chunking.chunk(
        document.document,
        encoding.embedder.token_offsets,
        max_tokens=encoding.chunk_tokens,
        overlap_tokens=encoding.overlap_tokens,
    )
    if not chunks:
        raise InvalidArgument("The document holds no words to search for.", field="data")
    if len(chunks) >= protocol.MAX_PASSAGES:
        raise TooLarge(f"The document falls into {len(chunks)} passages; split it.", field="data")
    return [_Piece(chunk, _context(document.title, chunk.headings)) for chunk in chunks]


def _encode_query(embedder: Embedder, text: str, dense: bool) -> EncodedQuery:
    weights = lexical.query_weights(analysis.words(text))
    vector = embedder.embed_query(text) if dense else None
    asked = tuple(analysis.words(QUESTION_PHRASES.sub(" , ", text)))
    return EncodedQuery(asked, weights, vector, language.nearest(text) or "")


def _encoded(document: StoredDocument, pieces: list[_Piece], dense: list[list[float]]) -> Encoded:
    seed = f"{document.tenant}\0{document.document_id}\0{document.content_hash}"
    prefix = hashlib.sha256(seed.encode()).hexdigest()[:16]
    passages = []
    held: Counter[int] = Counter()
    for ordinal, (piece, vector) in enumerate(zip(pieces, dense, strict=True)):
        counts, weights = lexical.passage(piece.context, piece.chunk.text)
        held.update(counts.keys())
        passages.append(
            EncodedPassage(
                piece.chunk,
                f"{prefix}-{ordinal}",
                document.language or language.nearest(piece.chunk.text) or "",
                vector,
                weights,
            )
        )
    return Encoded(tuple(passages), Contents(len(passages), held))


def _context(title: str, headings: tuple[str, ...]) -> list[str]:
    """The title and the headings above a passage, each once."""
    return list(dict.fromkeys(part for part in (title, *headings) if part))
