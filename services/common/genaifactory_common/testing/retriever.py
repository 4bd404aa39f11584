"""A fake retriever: returns a test's passages, and stores documents in memory.

fake = FakeRetriever([passage("Nghỉ phép năm là 14 ngày.")])
async with served(fake.app(VERIFIER)) as channel: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import identity, tokens
from genaifactory_common.errors import FactoryError, NotFound
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry


def passage(text: str, *, number: int = 1, title: str = "Handbook") -> types_pb2.Passage:
    """A passage with ids made from its number."""
    return types_pb2.Passage(
        passage_id=f"p{number}", document_id=f"d{number}", text=text, title=title, uri=f"docs/{number}.md", score=1.0
    )


class FakeRetriever(retriever_pb2_grpc.RetrieverServiceServicer):
    """Answers every search with the same passages; its `documents` belong to every tenant."""

    def __init__(self, passages: Iterable[types_pb2.Passage] = ()) -> None:
        self.passages = list(passages)
        self.passages_of: dict[str, list[types_pb2.Passage]] = {}
        """By query; instead of `passages`."""
        self.index_version = "v1"
        self.term_coverage = 1.0
        self.reading: types_pb2.Reading | None = None
        """Progress of an upload; None: there is none."""
        self.error: FactoryError | None = None
        """Raised by every call."""
        self.hold: asyncio.Event | None = None
        """Searches wait for it."""
        self.searches: list[retriever_pb2.SearchRequest] = []
        self.documents: dict[str, types_pb2.Document] = {}
        self.requests: list[Any] = []
        """Requests about documents and indexes."""
        self.callers: list[identity.Caller] = []
        self.uploaded: dict[str, bytes] = {}
        """The received bytes of each document, complete or not."""
        self.uploads_read: asyncio.Event | None = None
        """Uploads wait for it before they are read."""
        self.upload_ended = asyncio.Event()
        """Set when an upload has ended, in any way."""

    async def Search(self, request: retriever_pb2.SearchRequest, context: Any) -> retriever_pb2.SearchResponse:
        """The passages, bounded by the limit."""
        self.searches.append(request)
        self.callers.append(identity.current())
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        passages = self.passages_of.get(request.query, self.passages)[: request.limit or None]
        return retriever_pb2.SearchResponse(
            passages=passages,
            index_version=self.index_version,
            term_coverage=self.term_coverage if passages else 0.0,
            reading=self.reading,
        )

    async def ListDocuments(
        self, request: retriever_pb2.ListDocumentsRequest, context: Any
    ) -> retriever_pb2.ListDocumentsResponse:
        """The documents of the prefix and source, by id."""
        self._asked(request)
        matching = sorted(
            each
            for each, document in self.documents.items()
            if each.startswith(request.prefix) and request.source in ("", document.source)
        )
        page = [each for each in matching if each > request.page_token][: request.page_size or None]
        return retriever_pb2.ListDocumentsResponse(
            documents=[self.documents[each] for each in page],
            next_page_token=page[-1] if page and page[-1] != matching[-1] else "",
            total=len(matching),
        )

    async def GetDocument(
        self, request: retriever_pb2.GetDocumentRequest, context: Any
    ) -> retriever_pb2.GetDocumentResponse:
        """Returns the document, with its id as its text."""
        self._asked(request)
        if request.document_id not in self.documents:
            raise NotFound(f"There is no document '{request.document_id}'.", field="document_id")
        section = types_pb2.DocumentSection(
            headings=["Top"], text=request.document_id, end_offset=len(request.document_id)
        )
        return retriever_pb2.GetDocumentResponse(document=self.documents[request.document_id], sections=[section])

    async def DeleteDocuments(
        self, request: retriever_pb2.DeleteDocumentsRequest, context: Any
    ) -> retriever_pb2.DeleteDocumentsResponse:
        """Removes those that exist."""
        self._asked(request)
        missing = [each for each in request.document_ids if self.documents.pop(each, None) is None]
        return retriever_pb2.DeleteDocumentsResponse(
            deleted=len(request.document_ids) - len(missing), missing_ids=missing
        )

    async def Ingest(
        self, request_iterator: AsyncIterator[retriever_pb2.IngestRequest], context: Any
    ) -> AsyncIterator[retriever_pb2.IngestResponse]:
        """Stores the uploaded bytes; rejects a document whose id begins with "bad"."""
        self._asked((await anext(request_iterator)).open)
        await context.send_initial_metadata(())
        if self.uploads_read is not None:
            await self.uploads_read.wait()
        header = retriever_pb2.DocumentHeader()
        try:
            async for request in request_iterator:
                if request.WhichOneof("part") == "document":
                    header = request.document
                    self.requests.append(header)
                self.uploaded[header.document_id] = self.uploaded.get(header.document_id, b"") + request.data
                if len(self.uploaded[header.document_id]) == header.size_bytes:
                    yield self._stored(header)
        finally:
            self.upload_ended.set()

    def _stored(self, header: retriever_pb2.DocumentHeader) -> retriever_pb2.IngestResponse:
        if header.document_id.startswith("bad"):
            return retriever_pb2.IngestResponse(
                document_id=header.document_id,
                outcome=retriever_pb2.INGEST_OUTCOME_REJECTED,
                error_message="It cannot be read.",
                error_reason="INVALID_ARGUMENT",
            )
        return retriever_pb2.IngestResponse(
            document_id=header.document_id,
            outcome=retriever_pb2.INGEST_OUTCOME_ADDED,
            passages=1,
            index_version=self.index_version,
        )

    async def ListIndexes(
        self, request: retriever_pb2.ListIndexesRequest, context: Any
    ) -> retriever_pb2.ListIndexesResponse:
        """Returns the active version."""
        self._asked(request)
        index = retriever_pb2.Index(version=self.index_version, state=retriever_pb2.INDEX_STATE_ACTIVE)
        return retriever_pb2.ListIndexesResponse(indexes=[index])

    async def BuildIndex(
        self, request: retriever_pb2.BuildIndexRequest, context: Any
    ) -> AsyncIterator[retriever_pb2.BuildIndexResponse]:
        """Completes after two steps."""
        self._asked(request)
        yield retriever_pb2.BuildIndexResponse(
            index_version="v2", passages_total=2, state=retriever_pb2.INDEX_STATE_BUILDING
        )
        yield retriever_pb2.BuildIndexResponse(
            index_version="v2", passages_done=2, passages_total=2, state=retriever_pb2.INDEX_STATE_READY
        )

    async def SwapIndex(self, request: retriever_pb2.SwapIndexRequest, context: Any) -> retriever_pb2.SwapIndexResponse:
        """Serves the version from then on."""
        self._asked(request)
        previous, self.index_version = self.index_version, request.index_version
        return retriever_pb2.SwapIndexResponse(active_version=self.index_version, previous_version=previous)

    async def DropIndex(self, request: retriever_pb2.DropIndexRequest, context: Any) -> retriever_pb2.DropIndexResponse:
        """Does nothing."""
        self._asked(request)
        return retriever_pb2.DropIndexResponse()

    async def CountDocuments(
        self, request: retriever_pb2.CountDocumentsRequest, context: Any
    ) -> retriever_pb2.CountDocumentsResponse:
        """Counts `documents` for each of two tenants."""
        self._asked(request)
        counts = [
            retriever_pb2.DocumentCount(tenant=tenant, knowledge_base="documents", documents=len(self.documents))
            for tenant in ("acme", "gone")
        ]
        return retriever_pb2.CountDocumentsResponse(counts=counts)

    def _asked(self, request: Any) -> None:
        self.requests.append(request)
        self.callers.append(identity.current())
        if self.error is not None:
            raise self.error

    def app(self, verifier: tokens.Verifier) -> ServiceApp:
        """For `served`."""
        return ServiceApp(
            name="retriever",
            telemetry=Telemetry("retriever"),
            service_names=("genaifactory.retriever.v1.RetrieverService",),
            register=lambda server: retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(self, server),
            lifespan=_nothing,
            verifier=verifier,
        )


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
