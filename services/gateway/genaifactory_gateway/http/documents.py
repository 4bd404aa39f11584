"""/v1/documents: the documents of a knowledge base."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import bounds, formats
from genaifactory_common.errors import TABLE, FactoryError, InvalidArgument, Reason, TooLarge, UpstreamFailed
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.documents import Documents
from genaifactory_gateway.http import query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.settings import Http
from genaifactory_gateway.uploads import Uploads

_ALL = "/v1/documents"
_ONE = "/v1/documents/"
"""Prefix of the document's id, which may contain slashes and is percent-encoded otherwise."""

_OUTCOMES = {
    gateway_pb2.INGEST_OUTCOME_ADDED: "added",
    gateway_pb2.INGEST_OUTCOME_REPLACED: "replaced",
    gateway_pb2.INGEST_OUTCOME_UNCHANGED: "unchanged",
    gateway_pb2.INGEST_OUTCOME_DUPLICATE: "duplicate",
}
# Defaults of clients, for a document whose type was not set; its id's ending decides then.
_NO_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
_MAX_OFFSET = 2**32 - 1


class HttpDocuments:
    """Lists, shows, stores and removes documents. Needs the permission 'ingest'."""

    def __init__(self, admission: Admission, documents: Documents, uploads: Uploads, settings: Http) -> None:
        self._admission = admission
        self._documents = documents
        self._uploads = uploads
        self._settings = settings

    def handlers(self) -> Handlers:
        """By path and method."""
        one = {"GET": self._get, "PUT": self._put, "DELETE": self._delete}
        return {_ALL: {"GET": self._list}, f"{_ONE}{{id}}": one}

    async def _list(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "ListDocuments", exchange.request_id, exchange.entered
        ) as entry:
            names = ("knowledge_base", "prefix", "source", "page_size", "page_token")
            given = query.parameters(exchange.query, names)
            size = query.whole_number("page_size", given.pop("page_size"), most=bounds.MAX_DOCUMENTS)
            request = gateway_pb2.ListDocumentsRequest(**given, page_size=size)
            page = await self._documents.list(entry, request)
            answer = {
                "object": "list",
                "knowledge_base": page.knowledge_base,
                "data": [_object(document) for document in page.documents],
                "total": page.total,
                "next_page_token": page.next_page_token or None,
            }
            await exchange.respond(orjson.dumps(answer))

    async def _get(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "GetDocument", exchange.request_id, exchange.entered
        ) as entry:
            exchange.named = _named
            given = query.parameters(exchange.query, ("knowledge_base", "start_offset", "max_characters"))
            request = gateway_pb2.GetDocumentRequest(
                knowledge_base=given["knowledge_base"],
                document_id=exchange.path.removeprefix(_ONE),
                start_offset=query.whole_number("start_offset", given["start_offset"], most=_MAX_OFFSET),
                max_characters=query.whole_number(
                    "max_characters", given["max_characters"], most=bounds.MAX_TEXT_CHARACTERS
                ),
            )
            found = await self._documents.get(entry, request)
            answer = _object(found.document) | {
                "knowledge_base": found.knowledge_base,
                "sections": [
                    {
                        "headings": list(section.headings),
                        "text": section.text,
                        "start_offset": section.start_offset,
                        "end_offset": section.end_offset,
                    }
                    for section in found.sections
                ],
                "next_offset": found.next_offset or None,
            }
            await exchange.respond(orjson.dumps(answer))

    async def _put(self, exchange: Exchange) -> None:
        """The body is the document itself, which is streamed to the retriever."""
        async with self._admission.admit(
            exchange.authorization, "Ingest", exchange.request_id, exchange.entered
        ) as entry:
            exchange.named = _named
            names = ("knowledge_base", "title", "language", "uri", "source", "allowed_groups", "metadata")
            given = query.parameters(exchange.query, names)
            opened = gateway_pb2.IngestOpen(knowledge_base=entry.knowledge_base(given["knowledge_base"]).name)
            header = self._header(exchange, given)
            uploaded = self._uploads.ingest(entry, opened, _parts(header, exchange), accepted=_nothing)
            async with aclosing(uploaded) as results:
                result = await anext(results, None)
            if result is None:
                raise UpstreamFailed("The retriever returned no result for the document; send it again.")
            if result.outcome == gateway_pb2.INGEST_OUTCOME_REJECTED:
                raise _rejection(result)
            answer = {
                "object": "document.stored",
                "id": result.document_id,
                "knowledge_base": opened.knowledge_base,
                "outcome": _OUTCOMES[result.outcome],
                "passages": result.passages,
                "index_version": result.index_version,
            }
            added = result.outcome == gateway_pb2.INGEST_OUTCOME_ADDED
            await exchange.respond(orjson.dumps(answer), 201 if added else 200)

    def _header(self, exchange: Exchange, given: Mapping[str, str]) -> gateway_pb2.DocumentHeader:
        """The document's header, from the request. Raises InvalidArgument, TooLarge."""
        exchange.require_plain()
        size = exchange.content_length
        if not size:
            raise InvalidArgument(
                "The body must be the document, and the header Content-Length its size in bytes, at least 1."
            )
        if size > self._settings.max_document_bytes:
            raise TooLarge(
                f"The document has {size} bytes; at most {self._settings.max_document_bytes} are accepted. Split it."
            )
        document_id = exchange.path.removeprefix(_ONE)
        kind = exchange.content_type
        return gateway_pb2.DocumentHeader(
            document_id=document_id,
            uri=given["uri"] or formats.uri(document_id),
            media_type="" if kind in _NO_TYPES else kind,
            title=given["title"],
            language=given["language"],
            source=given["source"],
            metadata=_metadata(given["metadata"]),
            allowed_groups=[group for group in given["allowed_groups"].split(",") if group],
            size_bytes=size,
        )

    async def _delete(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "DeleteDocuments", exchange.request_id, exchange.entered
        ) as entry:
            exchange.named = _named
            given = query.parameters(exchange.query, ("knowledge_base",))
            document_id = exchange.path.removeprefix(_ONE)
            request = gateway_pb2.DeleteDocumentsRequest(
                knowledge_base=given["knowledge_base"], document_ids=[document_id]
            )
            await self._documents.delete(entry, request)
            await exchange.respond(orjson.dumps({"object": "document.deleted", "id": document_id, "deleted": True}))


async def _parts(header: gateway_pb2.DocumentHeader, exchange: Exchange) -> AsyncIterator[gateway_pb2.IngestRequest]:
    yield gateway_pb2.IngestRequest(document=header)
    async for piece in exchange.pieces():
        yield gateway_pb2.IngestRequest(data=piece)


async def _nothing() -> None:
    """HTTP has no early response: the client waits for the document's result."""


def _rejection(result: gateway_pb2.IngestResponse) -> FactoryError:
    reason = next((each for each in Reason if each == result.error_reason), Reason.INVALID_ARGUMENT)
    return TABLE[reason].error(result.error_message, reason=reason)


def _metadata(text: str) -> dict[str, str]:
    """The metadata in a query parameter. Raises InvalidArgument."""
    if not text:
        return {}
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidArgument('\'metadata\' must be a JSON object of texts, like {"year": "2026"}.', field="metadata")
    return found


def _named(field: str | None) -> str | None:
    """The client's name of a contract's field: the id is in the path."""
    return "id" if field in ("document_id", "document_ids") else field


def _object(document: types_pb2.Document) -> dict[str, Any]:
    return {
        "object": "document",
        "id": document.document_id,
        "uri": document.uri,
        "title": document.title,
        "language": document.language,
        "media_type": document.media_type,
        "size_bytes": document.size_bytes,
        "passages": document.passages,
        "store_time": document.store_time.ToJsonString() if document.HasField("store_time") else None,
        "allowed_groups": list(document.allowed_groups),
        "metadata": dict(document.metadata),
        "source": document.source,
    }
