"""Ingests uploads: parses and encodes them concurrently, and writes them in their order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from prometheus_client import Counter

from genaifactory_common import formats
from genaifactory_common.errors import FactoryError, PermissionDenied
from genaifactory_common.space import Space
from genaifactory_retriever.budget import ByteBudget
from genaifactory_retriever.documents import clean
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.knowledge import EncodedDocument, KnowledgeBase, Written
from genaifactory_retriever.parsing import parser
from genaifactory_retriever.parsing.limits import Limits
from genaifactory_retriever.stored import Origin, StoredDocument

logger = logging.getLogger(__name__)

DOCUMENTS = Counter("genaifactory_ingested_documents_total", "Documents that were ingested, by outcome.", ["outcome"])
PASSAGES = Counter("genaifactory_ingested_passages_total", "Passages that were stored.")

# Of one write: more would delay searches and need memory, fewer would sync the disk more often.
_BATCH_DOCUMENTS = 16
_BATCH_PASSAGES = 512
# How long an encoded document waits for those after it. The embedded store syncs the disk once per write, for 20 to
# 80 ms, and holds the interpreter's lock meanwhile, which stops searches and embedding.
_BATCH_SECONDS = 0.5
_MAX_TITLE_CHARACTERS = 300
_HIDDEN = (
    "A document of this id is stored that the caller may not see, so it was not replaced. Use another id, or a key "
    "with one of the document's groups or with the permission 'operate'."
)


@dataclass(frozen=True)
class Header:
    """The validated header of an uploaded document."""

    document_id: str
    uri: str
    media_type: str
    title: str
    language: str
    metadata: Mapping[str, str]
    allowed_groups: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True)
class Upload:
    """A document as received: its bytes, or why it is refused."""

    header: Header
    data: bytes
    """Held in the budget until the document's result is known."""
    refusal: FactoryError | None = None


@dataclass(frozen=True)
class Result:
    """The outcome of an upload."""

    document_id: str
    outcome: str
    """As knowledge.Written, or 'rejected'."""
    passages: int = 0
    error: FactoryError | None = None


@dataclass(frozen=True)
class _Ready:
    """An upload that is encoded, unchanged, or rejected."""

    upload: Upload
    size_bytes: int
    """Bytes of the budget that it holds."""
    prepared: EncodedDocument | None = None
    unchanged: Written | None = None
    error: FactoryError | None = None


class Ingestion:
    """Stores uploads in knowledge bases."""

    def __init__(
        self, encoder: Encoder, limits: Limits, budget: ByteBudget, space: Space, *, documents_in_flight: int
    ) -> None:
        self.budget = budget
        self._space = space
        self._encoder = encoder
        self._limits = limits
        self._documents_in_flight = documents_in_flight

    async def ingest(
        self,
        knowledge_base: KnowledgeBase,
        tenant: str,
        uploads: AsyncIterator[Upload],
        *,
        groups: tuple[str, ...] | None,
    ) -> AsyncGenerator[Result, None]:
        """A result for each upload, in their order; a bad document does not stop the others.

        groups: of the caller, as of KnowledgeBase.write: a document that it may not see is not replaced by one.
        Raises what `uploads` raises, after the results of the documents before, OutOfSpace when the disk is full, and
        Unavailable when the store fails.
        """
        self._space.require()
        ordered = _Ordered(self._documents_in_flight)
        preparing: set[asyncio.Task[_Ready]] = set()
        held = 0  # bytes of the budget

        async def read() -> None:
            nonlocal held
            try:
                async for upload in uploads:
                    held += len(upload.data)
                    task = asyncio.create_task(self._prepare(knowledge_base, tenant, upload))
                    preparing.add(task)
                    task.add_done_callback(preparing.discard)
                    await ordered.put(task)
            finally:
                ordered.end()

        reader = asyncio.create_task(read())
        try:
            while not ordered.ended:
                batch = await ordered.batch()
                results = await self._write(knowledge_base, tenant, groups, batch)
                finished = sum(ready.size_bytes for ready in batch)
                held -= finished
                self.budget.release(finished)
                for result in results:
                    DOCUMENTS.labels(result.outcome).inc()
                    PASSAGES.inc(result.passages)
                    yield result
            await reader
        finally:
            tasks = [reader, *preparing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.budget.release(held)

    async def _prepare(self, knowledge_base: KnowledgeBase, tenant: str, upload: Upload) -> _Ready:
        if upload.refusal is not None:
            return _Ready(upload, len(upload.data), error=upload.refusal)
        try:
            source_hash = await self._encoder.on_document_thread(_source_hash, upload)
            if unchanged := await knowledge_base.is_unchanged(tenant, upload.header.document_id, source_hash):
                return _Ready(upload, len(upload.data), unchanged=unchanged)
            return await self._encode(knowledge_base, tenant, upload, source_hash)
        except FactoryError as error:
            return _Ready(upload, len(upload.data), error=error)
        except Exception:
            # A parser's fault must not stop the other documents; the log has the traceback, without the text.
            logger.exception("document %s could not be read", upload.header.document_id)
            message = "The document could not be read; the retriever's log has the details."
            return _Ready(upload, len(upload.data), error=FactoryError(message, field="data"))

    async def _encode(self, knowledge_base: KnowledgeBase, tenant: str, upload: Upload, source_hash: str) -> _Ready:
        document = await self._encoder.on_document_thread(_document, upload, tenant, source_hash, self._limits)
        encoded = {each: await self._encoder.encode(document, each) for each in knowledge_base.encodings()}
        prepared = EncodedDocument(document, encoded)
        # Drops the bytes: from here on only text and vectors are needed.
        return _Ready(replace(upload, data=b""), len(upload.data), prepared)

    async def _write(
        self, knowledge_base: KnowledgeBase, tenant: str, groups: tuple[str, ...] | None, batch: list[_Ready]
    ) -> list[Result]:
        """Writes a batch of documents with different ids."""
        batch = [await self._confirmed(knowledge_base, tenant, ready) for ready in batch]
        growth = sum(ready.prepared.growth_bytes for ready in batch if ready.prepared is not None)
        if growth:
            await asyncio.to_thread(self._space.look)
            self._space.require(growth)
        prepared = [ready.prepared for ready in batch if ready.prepared is not None]
        written = iter(await knowledge_base.write(prepared, groups))
        return [_result(ready, next(written) if ready.prepared is not None else None) for ready in batch]

    async def _confirmed(self, knowledge_base: KnowledgeBase, tenant: str, ready: _Ready) -> _Ready:
        """Checks an unchanged document again: a write since then may have had the same id."""
        if ready.unchanged is None:
            return ready
        source_hash = await self._encoder.on_document_thread(_source_hash, ready.upload)
        if await knowledge_base.is_unchanged(tenant, ready.upload.header.document_id, source_hash):
            return ready
        return await self._prepare(knowledge_base, tenant, ready.upload)


class _Ordered:
    """Batches of encoded uploads, in the order of the uploads."""

    def __init__(self, size: int) -> None:
        self._room = asyncio.Semaphore(size)
        self._queue: asyncio.Queue[asyncio.Task[_Ready] | None] = asyncio.Queue()
        self._next: asyncio.Task[_Ready] | None = None
        self.ended = False

    async def put(self, task: asyncio.Task[_Ready]) -> None:
        """Adds an upload. Waits while `size` are queued."""
        await self._room.acquire()
        self._queue.put_nowait(task)

    def end(self) -> None:
        """Marks the end. Does not wait: after a write that failed nothing reads the queue."""
        self._queue.put_nowait(None)

    async def batch(self) -> list[_Ready]:
        """The next upload, and those after it that are ready within `_BATCH_SECONDS`. Empty at the end.

        No document is in it twice. An upload with no other behind it is returned at once.
        """
        batch: dict[str, _Ready] = {}
        passages = 0
        until = math.inf
        while len(batch) < _BATCH_DOCUMENTS and passages < _BATCH_PASSAGES:
            if self._next is None and (not batch or not self._queue.empty()):
                self._next = await self._queue.get()
                self.ended = self._next is None
                self._room.release()
            if self._next is None:
                break
            if batch:
                await asyncio.wait([self._next], timeout=max(until - time.monotonic(), 0))
                if not self._next.done():
                    break
            ready = await self._next
            until = min(until, time.monotonic() + _BATCH_SECONDS)
            if ready.upload.header.document_id in batch:
                break
            batch[ready.upload.header.document_id] = ready
            if ready.prepared is not None:
                passages += sum(len(encoded.passages) for encoded in ready.prepared.encoded.values())
            self._next = None
        return list(batch.values())


def _result(ready: _Ready, written: Written | None) -> Result:
    document_id = ready.upload.header.document_id
    if ready.error is not None:
        return Result(document_id, "rejected", error=ready.error)
    written = written or ready.unchanged
    assert written is not None  # it is neither rejected nor unchanged
    if written.outcome == "hidden":
        return Result(document_id, "rejected", error=PermissionDenied(_HIDDEN, field="document_id"))
    return Result(document_id, written.outcome, written.passages)


def _source_hash(upload: Upload) -> str:
    header = upload.header
    fields = json.dumps(
        [
            header.uri,
            header.media_type,
            header.title,
            header.language,
            sorted(header.metadata.items()),
            sorted(header.allowed_groups),
            *([header.source] if header.source else []),  # keeps the hash of documents stored before `source` existed
        ]
    )
    return hashlib.sha256(fields.encode() + b"\0" + upload.data).hexdigest()


def _name(uri: str, media_type: str) -> str:
    """The file's name; with its ending for source code, where it names the language."""
    path = PurePosixPath(unquote(urlsplit(uri).path))
    return path.name if media_type in formats.SOURCE else path.stem


def _document(upload: Upload, tenant: str, source_hash: str, limits: Limits) -> StoredDocument:
    header = upload.header
    media_type = parser.media_type_of(header.media_type, header.uri)
    parsed = parser.parse(upload.data, media_type, limits)
    title = clean(header.title) or parsed.title or _name(header.uri, media_type) or header.document_id
    groups = tuple(sorted(set(header.allowed_groups)))
    content = json.dumps(
        [
            title,
            parsed.text,
            [(section.headings, section.start) for section in parsed.sections],
            header.language,
            sorted(header.metadata.items()),
            groups,
        ]
    )
    return StoredDocument(
        tenant=tenant,
        document_id=header.document_id,
        source_hash=source_hash,
        content_hash=hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
        title=title[:_MAX_TITLE_CHARACTERS],
        uri=header.uri,
        language=header.language,
        metadata=dict(header.metadata),
        allowed_groups=groups,
        text=parsed.text,
        sections=parsed.sections,
        origin=Origin(media_type, len(upload.data), time.time(), header.source),
    )
