"""Lists, shows and removes documents of the caller's tenant, for HTTP and gRPC."""

from __future__ import annotations

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common import channels
from genaifactory_common.errors import NotFound
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.twins import twin


class Documents:
    """The retriever's RPCs on documents, for requests admitted with the permission 'ingest'."""

    def __init__(self, retriever: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        """timeout_seconds: for one call to the retriever."""
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(retriever)
        self._timeout_seconds = timeout_seconds

    async def list(self, entry: Entry, request: gateway_pb2.ListDocumentsRequest) -> gateway_pb2.ListDocumentsResponse:
        """A page of documents. Raises FactoryError."""
        wanted = twin(request, retriever_pb2.ListDocumentsRequest)
        base = wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        page = await channels.unary(self._retriever.ListDocuments, wanted, timeout_seconds=self._timeout_seconds)
        return gateway_pb2.ListDocumentsResponse(
            documents=page.documents, next_page_token=page.next_page_token, total=page.total, knowledge_base=base
        )

    async def get(self, entry: Entry, request: gateway_pb2.GetDocumentRequest) -> gateway_pb2.GetDocumentResponse:
        """A document and a piece of its text. Raises FactoryError."""
        wanted = twin(request, retriever_pb2.GetDocumentRequest)
        base = wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        found = await channels.unary(self._retriever.GetDocument, wanted, timeout_seconds=self._timeout_seconds)
        return gateway_pb2.GetDocumentResponse(
            document=found.document, sections=found.sections, next_offset=found.next_offset, knowledge_base=base
        )

    async def delete(
        self, entry: Entry, request: gateway_pb2.DeleteDocumentsRequest
    ) -> gateway_pb2.DeleteDocumentsResponse:
        """Removes documents. Raises FactoryError; NotFound when none of them exists."""
        wanted = twin(request, retriever_pb2.DeleteDocumentsRequest)
        base = wanted.knowledge_base = entry.knowledge_base(request.knowledge_base).name
        await entry.reserve()
        done = await channels.unary(self._retriever.DeleteDocuments, wanted, timeout_seconds=self._timeout_seconds)
        if not done.deleted:
            first, *others = done.missing_ids
            more = f", nor any of the {len(others)} others" if others else ""
            raise NotFound(f"The knowledge base '{base}' has no document '{first}'{more}.", field="document_ids")
        return twin(done, gateway_pb2.DeleteDocumentsResponse)
