"""Sends documents to a running platform through its gateway, and removes them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common import decoding, formats, limited
from genaifactory_common.channels import Duplex
from genaifactory_common.errors import NotFound
from genaifactory_pipelines.sources.protocol import Content, Document

_PIECE_BYTES = 512 * 1024
# Documents in one call, so that each call has a deadline that fits it.
_DOCUMENTS_PER_CALL = 32
_CALL_TIMEOUT_SECONDS = 600.0
_DELETIONS_PER_CALL = 100

Item = TypeVar("Item")


@dataclass(frozen=True)
class Failure:
    """A document that was not stored."""

    document_id: str
    message: str


@dataclass
class Summary:
    """Documents by outcome."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    duplicates: int = 0
    removed: int = 0
    """Stored documents that were gone from their source."""
    passages: int = 0
    failures: list[Failure] = field(default_factory=list)
    guessed: dict[str, str] = field(default_factory=dict)
    """Document id -> encoding, of texts that declare none and are not UTF-8."""

    @property
    def done(self) -> int:
        """Documents that have an outcome."""
        return self.added + self.replaced + self.unchanged + self.duplicates + len(self.failures)


async def ingest(
    channel: grpc.aio.Channel,
    knowledge_base: str,
    documents: Iterable[Document],
    *,
    groups: Iterable[str] = (),
    metadata: Mapping[str, str] | None = None,
    on_progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Sends the documents to the gateway on `channel`.

    A document that is refused is listed in the summary and stops no other. Raises FactoryError when the platform
    refuses the call as a whole or cannot be reached.
    """
    summary = Summary()
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    header = gateway_pb2.DocumentHeader(allowed_groups=list(groups), metadata=dict(metadata or {}))
    waiting = list(documents)
    total = len(waiting)
    for number, batch in enumerate(_batches(waiting, _DOCUMENTS_PER_CALL), start=1):
        opened = gateway_pb2.IngestOpen(
            knowledge_base=knowledge_base,
            documents_total=total,
            documents_before=summary.done,
            continues=number * _DOCUMENTS_PER_CALL < total,
        )
        upload = _Upload(stub, opened, batch, header, summary, on_progress)
        await limited.retried(upload.run)
    on_progress(summary)
    return summary


async def remove(channel: grpc.aio.Channel, knowledge_base: str, document_ids: Iterable[str]) -> list[str]:
    """Deletes documents through the gateway on `channel`; returns ids that name none. Raises FactoryError."""
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    missing: list[str] = []
    for batch in _batches(document_ids, _DELETIONS_PER_CALL):
        request = gateway_pb2.DeleteDocumentsRequest(knowledge_base=knowledge_base, document_ids=batch)
        try:
            response = await limited.unary(stub.DeleteDocuments, request, timeout_seconds=_CALL_TIMEOUT_SECONDS)
        except NotFound as error:
            if error.field != "document_ids":
                raise
            missing += batch  # none of them is there
        else:
            missing += response.missing_ids
    return missing


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


@dataclass(frozen=True)
class _Upload:
    """One call with a batch of documents."""

    stub: gateway_pb2_grpc.GatewayServiceAsyncStub
    opened: gateway_pb2.IngestOpen
    batch: list[Document]
    header: gateway_pb2.DocumentHeader
    """Fields that all of them share."""
    summary: Summary
    on_progress: Callable[[Summary], None]

    async def run(self) -> None:
        """Raises FactoryError; RateLimited and Overloaded before any document was sent."""
        try:
            async with (
                Duplex(self.stub.Ingest, timeout_seconds=_CALL_TIMEOUT_SECONDS) as call,
                asyncio.TaskGroup() as tasks,
            ):
                sending = tasks.create_task(self._send(call))
                async for response in call:
                    _count(self.summary, response)
                    self.on_progress(self.summary)
                sending.cancel()  # the gateway has ended the call
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _send(self, call: Duplex) -> None:
        request = gateway_pb2.IngestRequest
        await call.send(request(open=self.opened))
        await call.accepted()
        self.on_progress(self.summary)  # from here on searches report how far the upload is
        for document in self.batch:
            content = await document.content()
            if isinstance(content, str):
                self.summary.failures.append(Failure(document.document_id, content))
                continue
            data = content.data
            if encoding := await asyncio.to_thread(_guessed_encoding, document, content):
                self.summary.guessed[document.document_id] = encoding
            own = gateway_pb2.DocumentHeader(
                document_id=document.document_id,
                uri=document.uri,
                media_type=content.media_type,
                size_bytes=len(data),
                source=document.source_name,
            )
            own.MergeFrom(self.header)
            await call.send(request(document=own))
            for start in range(0, len(data), _PIECE_BYTES):
                await call.send(request(data=data[start : start + _PIECE_BYTES]))
        await call.done_sending()


def _guessed_encoding(document: Document, content: Content) -> str:
    ending = PurePosixPath(document.document_id).suffix.lower()
    media_type = content.media_type or formats.BY_ENDING.get(ending, "")
    return decoding.guessed_encoding(content.data, media_type) if media_type else ""


def _count(summary: Summary, response: Any) -> None:
    outcome = response.outcome
    summary.passages += response.passages
    if outcome == gateway_pb2.INGEST_OUTCOME_ADDED:
        summary.added += 1
    elif outcome == gateway_pb2.INGEST_OUTCOME_REPLACED:
        summary.replaced += 1
    elif outcome == gateway_pb2.INGEST_OUTCOME_UNCHANGED:
        summary.unchanged += 1
    elif outcome == gateway_pb2.INGEST_OUTCOME_DUPLICATE:
        summary.duplicates += 1
    else:
        summary.failures.append(Failure(response.document_id, response.error_message))
