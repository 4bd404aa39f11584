"""What both doors do about documents: list, show and remove those of the caller's tenant."""

from __future__ import annotations

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_common.errors import NotFound
from genaifactory_gateway.admission import Entry


class Documents:
    """The retriever's part on documents, for requests that were admitted with the permission 'ingest'."""

    def __init__(self, retriever: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one call to the retriever."""
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(retriever)
        self._timeout_seconds = timeout_seconds

    async def list(self, entry: Entry, request: gateway_pb2.ListDocumentsRequest) -> gateway_pb2.ListDocumentsResponse:
        """A page of documents. Raises FactoryError."""
        base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        page = await channels.unary(
            self._retriever.ListDocuments,
            retriever_pb2.ListDocumentsRequest(
                knowledge_base=base,
                prefix=request.prefix,
                source=request.source,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
            timeout_seconds=self._timeout_seconds,
        )
        return gateway_pb2.ListDocumentsResponse(
            documents=page.documents, next_page_token=page.next_page_token, total=page.total, knowledge_base=base
        )

    async def get(self, entry: Entry, request: gateway_pb2.GetDocumentRequest) -> gateway_pb2.GetDocumentResponse:
        """A document and a piece of its text. Raises FactoryError."""
        base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        found = await channels.unary(
            self._retriever.GetDocument,
            retriever_pb2.GetDocumentRequest(
                knowledge_base=base,
                document_id=request.document_id,
                start_offset=request.start_offset,
                max_characters=request.max_characters,
            ),
            timeout_seconds=self._timeout_seconds,
        )
        return gateway_pb2.GetDocumentResponse(
            document=found.document, sections=found.sections, next_offset=found.next_offset, knowledge_base=base
        )

    async def delete(
        self, entry: Entry, request: gateway_pb2.DeleteDocumentsRequest
    ) -> gateway_pb2.DeleteDocumentsResponse:
        """Removes documents. Raises FactoryError; NotFound when none of them is there."""
        base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        done = await channels.unary(
            self._retriever.DeleteDocuments,
            retriever_pb2.DeleteDocumentsRequest(knowledge_base=base, document_ids=request.document_ids),
            timeout_seconds=self._timeout_seconds,
        )
        if not done.deleted:
            first, *others = done.missing_ids
            more = f", nor any of the {len(others)} others" if others else ""
            raise NotFound(f"The knowledge base '{base}' has no document '{first}'{more}.", field="document_ids")
        return gateway_pb2.DeleteDocumentsResponse(deleted=done.deleted, missing_ids=done.missing_ids)
