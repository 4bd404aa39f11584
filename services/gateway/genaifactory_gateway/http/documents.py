"""/v1/documents: the documents that answers rest on, for who may change them."""

from __future__ import annotations

from typing import Any

import orjson

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.documents import Documents
from genaifactory_gateway.http import query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers

_ALL = "/v1/documents"
_ONE = "/v1/documents/"
"""Before the document's id, which may hold slashes and is percent-encoded otherwise."""

_MAX_PAGE = 1000
_MAX_CHARACTERS = 1_000_000
_MAX_OFFSET = 2**32 - 1


class HttpDocuments:
    """Lists, shows and removes documents. Needs the permission 'ingest'."""

    def __init__(self, admission: Admission, documents: Documents) -> None:
        self._admission = admission
        self._documents = documents

    def handlers(self) -> Handlers:
        """By path and method."""
        return {_ALL: {"GET": self._list}, f"{_ONE}{{id}}": {"GET": self._get, "DELETE": self._delete}}

    async def _list(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "ingest", exchange.request_id) as entry:
            exchange.entered(entry)
            names = ("knowledge_base", "prefix", "source", "page_size", "page_token")
            given = query.parameters(exchange.query, names)
            size = query.whole_number("page_size", given.pop("page_size"), most=_MAX_PAGE)
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
        async with self._admission.admit(exchange.authorization, "ingest", exchange.request_id) as entry:
            exchange.entered(entry)
            exchange.named = _named
            given = query.parameters(exchange.query, ("knowledge_base", "start_offset", "max_characters"))
            request = gateway_pb2.GetDocumentRequest(
                knowledge_base=given["knowledge_base"],
                document_id=exchange.path.removeprefix(_ONE),
                start_offset=query.whole_number("start_offset", given["start_offset"], most=_MAX_OFFSET),
                max_characters=query.whole_number("max_characters", given["max_characters"], most=_MAX_CHARACTERS),
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

    async def _delete(self, exchange: Exchange) -> None:
        async with self._admission.admit(exchange.authorization, "ingest", exchange.request_id) as entry:
            exchange.entered(entry)
            exchange.named = _named
            given = query.parameters(exchange.query, ("knowledge_base",))
            document_id = exchange.path.removeprefix(_ONE)
            request = gateway_pb2.DeleteDocumentsRequest(
                knowledge_base=given["knowledge_base"], document_ids=[document_id]
            )
            await self._documents.delete(entry, request)
            await exchange.respond(orjson.dumps({"object": "document.deleted", "id": document_id, "deleted": True}))


def _named(field: str | None) -> str | None:
    """What the contracts call by other names stands in the path."""
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
