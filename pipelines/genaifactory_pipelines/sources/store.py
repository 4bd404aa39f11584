"""The documents that a knowledge base stores, for the holder of a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import limited
from genaifactory_pipelines.sources import sending

PAGE = 1000
_TIMEOUT_SECONDS = 60.0


class Pages(Protocol):
    """Documents by pages."""

    async def page(
        self, *, prefix: str = "", source: str = "", size: int = PAGE, after: str = ""
    ) -> gateway_pb2.ListDocumentsResponse:
        """Documents by id, with how many there are in all. Raises FactoryError."""


@dataclass(frozen=True)
class Store:
    """A knowledge base of a running platform, for the holder of a key. Every method raises FactoryError."""

    channel: grpc.aio.Channel
    """To the gateway, with the key."""
    knowledge_base: str

    async def page(
        self, *, prefix: str = "", source: str = "", size: int = PAGE, after: str = ""
    ) -> gateway_pb2.ListDocumentsResponse:
        """Documents by id, with how many there are in all."""
        request = gateway_pb2.ListDocumentsRequest(
            knowledge_base=self.knowledge_base, prefix=prefix, source=source, page_size=size, page_token=after
        )
        return await limited.unary(self._stub.ListDocuments, request, timeout_seconds=_TIMEOUT_SECONDS)

    async def get(self, document_id: str, characters: int) -> gateway_pb2.GetDocumentResponse:
        """One document, with the beginning of its text. Raises NotFound."""
        request = gateway_pb2.GetDocumentRequest(
            knowledge_base=self.knowledge_base, document_id=document_id, max_characters=characters
        )
        return await limited.unary(self._stub.GetDocument, request, timeout_seconds=_TIMEOUT_SECONDS)

    async def remove(self, document_ids: list[str]) -> list[str]:
        """Removes documents; returns those of the ids that name none."""
        return await sending.remove(self.channel, self.knowledge_base, document_ids)

    @property
    def _stub(self) -> gateway_pb2_grpc.GatewayServiceAsyncStub:
        return gateway_pb2_grpc.GatewayServiceStub(self.channel)


async def stored(pages: Pages, *, prefix: str = "", source: str = "") -> AsyncIterator[types_pb2.Document]:
    """All documents that match, by id. Raises FactoryError."""
    after = ""
    while True:
        page = await pages.page(prefix=prefix, source=source, after=after)
        for document in page.documents:
            yield document
        after = page.next_page_token
        if not after:
            return


async def gone(pages: Pages, source: str, here: Container[str], unknown: tuple[str, ...]) -> list[str]:
    """Ids of stored documents of a source that are not in it any more. Raises FactoryError.

    here: ids of those that are. unknown: beginnings of ids of which it is not known, which are left out.
    """
    return [
        document.document_id
        async for document in stored(pages, source=source)
        if document.document_id not in here and not document.document_id.startswith(unknown)
    ]
