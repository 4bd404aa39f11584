"""What becomes of documents in the retriever: they are sent, and removed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

import grpc.aio

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels, formats
from genaifactory_common.channels import Duplex
from genaifactory_local import finding
from genaifactory_local.finding import DocumentFile
from genaifactory_retriever.parsing import decoding

_PIECE_BYTES = 512 * 1024
# One call takes this many documents, so that each call has a deadline that fits it.
_DOCUMENTS_PER_CALL = 32
_CALL_TIMEOUT_SECONDS = 600.0
_DELETIONS_PER_CALL = 500

Item = TypeVar("Item")


@dataclass(frozen=True)
class Failure:
    """A document that was not stored."""

    document_id: str
    message: str


@dataclass
class Summary:
    """What became of the documents."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    duplicates: int = 0
    removed: int = 0
    """Documents that were stored and are gone from where they came from."""
    passages: int = 0
    failures: list[Failure] = field(default_factory=list)
    guessed: dict[str, str] = field(default_factory=dict)
    """Ids of documents of text that declares no encoding and is not UTF-8, with the one that it was read in."""

    @property
    def done(self) -> int:
        """Documents that have an outcome."""
        return self.added + self.replaced + self.unchanged + self.duplicates + len(self.failures)


async def ingest(
    channel: grpc.aio.Channel,
    sign_in: Callable[[], None],
    knowledge_base: str,
    documents: Iterable[DocumentFile],
    *,
    groups: Iterable[str] = (),
    metadata: Mapping[str, str] | None = None,
    on_progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Sends the documents to the retriever on `channel`.

    sign_in: makes the running task's calls come from somebody, anew for each batch since that proof runs out.

    A document that is refused is listed in the summary and stops no other. Raises FactoryError when the retriever
    refuses the call as a whole or goes away.
    """
    summary = Summary()
    stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
    header = retriever_pb2.DocumentHeader(allowed_groups=list(groups), metadata=dict(metadata or {}))
    waiting = list(documents)
    total = len(waiting)
    for number, batch in enumerate(_batches(waiting, _DOCUMENTS_PER_CALL), start=1):
        sign_in()
        opened = retriever_pb2.IngestOpen(
            knowledge_base=knowledge_base,
            documents_total=total,
            documents_before=summary.done,
            continues=number * _DOCUMENTS_PER_CALL < total,
        )
        try:
            async with Duplex(stub.Ingest, timeout_seconds=_CALL_TIMEOUT_SECONDS) as call, asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(_send(call, opened, batch, header, summary, on_progress))
                async for response in call:
                    _count(summary, response)
                    on_progress(summary)
                sending.cancel()  # the retriever has ended the call; there is nobody to send to
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    on_progress(summary)
    return summary


async def remove(
    channel: grpc.aio.Channel, sign_in: Callable[[], None], knowledge_base: str, document_ids: Iterable[str]
) -> list[str]:
    """Deletes documents from the retriever on `channel`; those of the ids that name none. Raises FactoryError."""
    stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
    missing: list[str] = []
    for batch in _batches(document_ids, _DELETIONS_PER_CALL):
        sign_in()
        request = retriever_pb2.DeleteDocumentsRequest(knowledge_base=knowledge_base, document_ids=batch)
        response = await channels.unary(stub.DeleteDocuments, request, timeout_seconds=_CALL_TIMEOUT_SECONDS)
        missing += response.missing_ids
    return missing


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


async def _send(
    call: Duplex,
    opened: retriever_pb2.IngestOpen,
    batch: list[DocumentFile],
    header: retriever_pb2.DocumentHeader,
    summary: Summary,
    on_progress: Callable[[Summary], None],
) -> None:
    request = retriever_pb2.IngestRequest
    await call.send(request(open=opened))
    await call.accepted()
    on_progress(summary)  # from here on the retriever's searches report how far the upload is
    for document in batch:
        data = await asyncio.to_thread(finding.read, document)
        if isinstance(data, str):
            summary.failures.append(Failure(document.document_id, data))
            continue
        if encoding := await asyncio.to_thread(_guessed_encoding, document.document_id, data):
            summary.guessed[document.document_id] = encoding
        own = retriever_pb2.DocumentHeader(
            document_id=document.document_id,
            uri=formats.uri(document.document_id),
            size_bytes=len(data),
            source=document.source.name,
        )
        own.MergeFrom(header)
        await call.send(request(document=own))
        for start in range(0, len(data), _PIECE_BYTES):
            await call.send(request(data=data[start : start + _PIECE_BYTES]))
    await call.done_sending()


def _guessed_encoding(document_id: str, data: bytes) -> str:
    media_type = formats.BY_ENDING.get(PurePosixPath(document_id).suffix.lower(), "")
    return decoding.guessed_encoding(data, media_type) if media_type else ""


def _count(summary: Summary, response: Any) -> None:
    outcome = response.outcome
    summary.passages += response.passages
    if outcome == retriever_pb2.INGEST_OUTCOME_ADDED:
        summary.added += 1
    elif outcome == retriever_pb2.INGEST_OUTCOME_REPLACED:
        summary.replaced += 1
    elif outcome == retriever_pb2.INGEST_OUTCOME_UNCHANGED:
        summary.unchanged += 1
    elif outcome == retriever_pb2.INGEST_OUTCOME_DUPLICATE:
        summary.duplicates += 1
    else:
        summary.failures.append(Failure(response.document_id, response.error_message))
