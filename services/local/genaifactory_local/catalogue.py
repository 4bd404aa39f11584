"""The documents of a running platform, for the command line: with an API key, over HTTP or gRPC."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx2
from google.protobuf import json_format

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import FactoryError, NotFound, Unavailable
from genaifactory_local import asking
from genaifactory_pipelines.sources.store import PAGE, stored

_TIMEOUT_SECONDS = 60.0
_MOST_COMPARED = 20_000
_SUGGESTED = 3


class Catalogue(Protocol):
    """Documents of one knowledge base that belong to the key's tenant. Every method raises FactoryError."""

    @property
    def knowledge_base(self) -> str:
        """Its name."""

    async def page(
        self, *, prefix: str = "", source: str = "", size: int = PAGE, after: str = ""
    ) -> gateway_pb2.ListDocumentsResponse:
        """Documents by id, with how many there are in all."""

    async def get(self, document_id: str, characters: int) -> gateway_pb2.GetDocumentResponse:
        """One document, with the beginning of its text. Raises NotFound."""

    async def remove(self, document_ids: list[str]) -> list[str]:
        """Removes documents; returns those of the ids that name none."""


class OverHttp:
    """A platform anywhere, through its gateway."""

    def __init__(self, url: str, key: str, knowledge_base: str) -> None:
        """url: with or without the /v1 of the OpenAI API."""
        self.knowledge_base = knowledge_base
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1/documents"
        self._key = key

    async def page(
        self, *, prefix: str = "", source: str = "", size: int = PAGE, after: str = ""
    ) -> gateway_pb2.ListDocumentsResponse:
        """Documents by id, with how many there are in all."""
        wanted = {"prefix": prefix, "source": source, "page_size": str(size), "page_token": after}
        body = await self._ask("GET", "", {name: value for name, value in wanted.items() if value})
        return gateway_pb2.ListDocumentsResponse(
            documents=[_document(each) for each in body["data"]],
            next_page_token=body["next_page_token"] or "",
            total=body["total"],
        )

    async def get(self, document_id: str, characters: int) -> gateway_pb2.GetDocumentResponse:
        """One document, with the beginning of its text. Raises NotFound."""
        body = await self._ask("GET", document_id, {"max_characters": str(characters)})
        sections = [json_format.ParseDict(each, types_pb2.DocumentSection()) for each in body["sections"]]
        return gateway_pb2.GetDocumentResponse(
            document=_document(body), sections=sections, next_offset=body["next_offset"] or 0
        )

    async def remove(self, document_ids: list[str]) -> list[str]:
        """Removes documents; returns those of the ids that name none."""
        missing = []
        for document_id in document_ids:
            try:
                await self._ask("DELETE", document_id, {})
            except NotFound as error:
                _require_knowledge_base(error)
                missing.append(document_id)
        return missing

    async def _ask(self, method: str, document_id: str, query: Mapping[str, str]) -> dict[str, Any]:
        url = f"{self._url}/{quote(document_id)}" if document_id else self._url
        with asking.reaching(self._url):
            async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                response = await client.request(
                    method,
                    url,
                    params={"knowledge_base": self.knowledge_base, **query},
                    headers={"Authorization": f"Bearer {self._key}"},
                )
        if response.status_code != httpx2.codes.OK:
            raise asking.refusal(response)
        body = json.loads(response.text) if response.headers.get("content-type") == "application/json" else None
        if not isinstance(body, dict) or "object" not in body:
            raise Unavailable(f"{self._url} answers, but not as a GenAI Factory does.", field="--url")
        return body


async def sources(catalogue: Catalogue) -> dict[str, int]:
    """How many documents each source has; "" for documents without one. Raises FactoryError."""
    counts: Counter[str] = Counter()
    async for document in stored(catalogue):
        counts[document.source] += 1
    return dict(sorted(counts.items()))


async def get(catalogue: Catalogue, document_id: str, characters: int) -> gateway_pb2.GetDocumentResponse:
    """As Catalogue.get, but the error for an unknown id suggests similar ones."""
    try:
        return await catalogue.get(document_id, characters)
    except NotFound as error:
        _require_knowledge_base(error)
        raise await unknown(catalogue, [document_id]) from None


def _require_knowledge_base(error: NotFound) -> None:
    """Raises the error when the knowledge base was not found, rather than a document."""
    if error.field == "knowledge_base":
        raise error


async def unknown(catalogue: Catalogue, document_ids: list[str]) -> FactoryError:
    """The error for ids that name no document; it suggests similar ones."""
    known = []
    async for document in stored(catalogue):
        known.append(document.document_id)
        if len(known) == _MOST_COMPARED:
            break
    where = f"in the knowledge base '{catalogue.knowledge_base}'"
    if not known:
        return NotFound(f"There is no document {where}; read some with: genaifactory ingest PATH", field="DOCUMENT_ID")
    parts = [f"There is no document '{each}' {where}{_suggestion(each, known)}" for each in document_ids]
    return NotFound(f"{' '.join(parts)} `genaifactory documents list` lists all.", field="DOCUMENT_ID")


def _suggestion(document_id: str, known: list[str]) -> str:
    simple = _simplified(document_id)
    near = [each for each in known if _simplified(each) == simple or _simplified(each).endswith(f"/{simple}")]
    near += difflib.get_close_matches(document_id, known, n=_SUGGESTED, cutoff=0.6)
    found = list(dict.fromkeys(near))[:_SUGGESTED]
    names = " or ".join(f"'{each}'" for each in found)
    return f"; did you mean {names}?" if found else "."


def _simplified(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _document(body: dict[str, Any]) -> types_pb2.Document:
    known = {"document_id" if name == "id" else name: value for name, value in body.items() if value is not None}
    return json_format.ParseDict(known, types_pb2.Document(), ignore_unknown_fields=True)
