"""RetrieverService: converts and validates messages, and calls the domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import bounds, formats, identity, known, specs
from genaifactory_common.errors import InvalidArgument, NotFound
from genaifactory_common.space import Space
from genaifactory_retriever import catalogue, upload
from genaifactory_retriever.documents import clean
from genaifactory_retriever.fusion import Mode
from genaifactory_retriever.ingestion import Ingestion, Result
from genaifactory_retriever.knowledge import KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.search import Query, Searcher, SearchResult
from genaifactory_retriever.settings import Settings
from genaifactory_retriever.uploading import Reading, Uploads
from genaifactory_retriever.vectors.protocol import Passage

MAX_QUERY_CHARACTERS = 8192
MAX_LIMIT = 100
MAX_DELETED = 1000
MAX_KEY_CHARACTERS = 128

_MODES = {
    retriever_pb2.SEARCH_MODE_UNSPECIFIED: Mode.HYBRID,
    retriever_pb2.SEARCH_MODE_HYBRID: Mode.HYBRID,
    retriever_pb2.SEARCH_MODE_LEXICAL: Mode.LEXICAL,
    retriever_pb2.SEARCH_MODE_DENSE: Mode.DENSE,
}
_OUTCOMES = {
    "added": retriever_pb2.INGEST_OUTCOME_ADDED,
    "replaced": retriever_pb2.INGEST_OUTCOME_REPLACED,
    "unchanged": retriever_pb2.INGEST_OUTCOME_UNCHANGED,
    "duplicate": retriever_pb2.INGEST_OUTCOME_DUPLICATE,
    "rejected": retriever_pb2.INGEST_OUTCOME_REJECTED,
}
_STATES = {
    "building": retriever_pb2.INDEX_STATE_BUILDING,
    "ready": retriever_pb2.INDEX_STATE_READY,
    "active": retriever_pb2.INDEX_STATE_ACTIVE,
    "previous": retriever_pb2.INDEX_STATE_PREVIOUS,
    "failed": retriever_pb2.INDEX_STATE_FAILED,
}


@dataclass(frozen=True)
class Parts:
    """The open state of the service."""

    library: Library
    searcher: Searcher
    ingestion: Ingestion
    space: Space
    knowledge_base: Callable[[specs.KnowledgeBase], Awaitable[KnowledgeBase]]
    """Returns an open knowledge base; opens it on first use."""


class RetrieverServicer(retriever_pb2_grpc.RetrieverServiceServicer):
    """The service."""

    def __init__(self, settings: Settings, source: specs.Source, parts: Callable[[], Parts]) -> None:
        """parts: raises Unavailable while the state is not open."""
        self._settings = settings
        self._source = source
        self._parts = parts
        self._uploads = Uploads()

    async def Search(self, request: retriever_pb2.SearchRequest, context: Any) -> retriever_pb2.SearchResponse:
        caller, knowledge_base, _ = await self._caller(request.knowledge_base)
        query = _query(request, self._settings.search.default_limit)
        # Before the search: documents that it misses are reported even if they are stored a moment later.
        reading = self._uploads.reading((knowledge_base.name, caller.tenant))
        return _search_response(await self._parts().searcher.search(knowledge_base, query, caller), reading)

    async def Ingest(
        self, request_iterator: AsyncIterator[retriever_pb2.IngestRequest], context: Any
    ) -> AsyncIterator[retriever_pb2.IngestResponse]:
        requests = aiter(request_iterator)
        name, announced = await upload.first_message(requests)
        caller, knowledge_base, _ = await self._caller(name)
        with self._uploads.call((knowledge_base.name, caller.tenant), announced) as call:
            # The call is accepted: clients may wait for this before they send documents.
            await context.send_initial_metadata(())
            async with aclosing(self._ingest(requests, knowledge_base, caller)) as results:
                async for result in results:
                    call.done += 1
                    yield _ingest_response(result, knowledge_base.snapshots.current.active.version)

    def _ingest(
        self,
        requests: AsyncIterator[retriever_pb2.IngestRequest],
        knowledge_base: KnowledgeBase,
        caller: identity.Caller,
    ) -> AsyncGenerator[Result, None]:
        ingestion = self._parts().ingestion
        documents = upload.uploads(
            requests,
            ingestion.budget,
            max_bytes=self._settings.documents.max_bytes,
            data_timeout_seconds=self._settings.ingestion.data_timeout_seconds,
        )
        return ingestion.ingest(knowledge_base, caller.tenant, documents, groups=_groups(caller))

    async def ListIndexes(
        self, request: retriever_pb2.ListIndexesRequest, context: Any
    ) -> retriever_pb2.ListIndexesResponse:
        caller, knowledge_base, _ = await self._caller(request.knowledge_base)
        library = self._parts().library
        response = retriever_pb2.ListIndexesResponse()
        for index in await library.run(library.indexes, knowledge_base.name):
            if index.state == "dropped":
                continue
            documents, passages = await library.run(library.totals, index.id, caller.tenant)
            message = response.indexes.add(
                version=index.version,
                state=_STATES[index.state],
                documents=documents,
                passages=passages,
                embedding_model=(index.embedding.embedder if index.embedding else specs.MiniLMEmbedder()).model,
                chunk_tokens=index.chunk_tokens,
                chunk_overlap_tokens=index.overlap_tokens,
            )
            message.create_time.FromNanoseconds(int(index.create_time * 1e9))
        return response

    async def BuildIndex(
        self, request: retriever_pb2.BuildIndexRequest, context: Any
    ) -> AsyncIterator[retriever_pb2.BuildIndexResponse]:
        _, knowledge_base, spec = await self._caller(request.knowledge_base)
        if len(request.idempotency_key) > MAX_KEY_CHARACTERS:
            raise InvalidArgument(
                f"idempotency_key has at most {MAX_KEY_CHARACTERS} characters.", field="idempotency_key"
            )
        self._parts().space.require()
        progress = knowledge_base.build(spec, request.idempotency_key)
        try:
            async for step in progress:
                yield retriever_pb2.BuildIndexResponse(
                    index_version=step.version,
                    passages_done=step.passages_done,
                    passages_total=step.passages_total,
                    state=_STATES[step.state],
                    problem=step.problem,
                )
        finally:
            await progress.aclose()

    async def SwapIndex(self, request: retriever_pb2.SwapIndexRequest, context: Any) -> retriever_pb2.SwapIndexResponse:
        _, knowledge_base, _ = await self._caller(request.knowledge_base)
        if not request.index_version:
            raise InvalidArgument("index_version must name the version to serve.", field="index_version")
        active, previous = await knowledge_base.swap(request.index_version)
        return retriever_pb2.SwapIndexResponse(active_version=active, previous_version=previous)

    async def DropIndex(self, request: retriever_pb2.DropIndexRequest, context: Any) -> retriever_pb2.DropIndexResponse:
        _, knowledge_base, _ = await self._caller(request.knowledge_base)
        if not request.index_version:
            raise InvalidArgument("index_version must name the version to drop.", field="index_version")
        await knowledge_base.drop(request.index_version)
        return retriever_pb2.DropIndexResponse()

    async def DeleteDocuments(
        self, request: retriever_pb2.DeleteDocumentsRequest, context: Any
    ) -> retriever_pb2.DeleteDocumentsResponse:
        caller, knowledge_base, _ = await self._caller(request.knowledge_base)
        if not 1 <= len(request.document_ids) <= MAX_DELETED:
            raise InvalidArgument(f"document_ids must hold 1 to {MAX_DELETED} ids.", field="document_ids")
        for i, document_id in enumerate(request.document_ids):
            upload.check_document_id(f"document_ids[{i}]", document_id)
        # Allowed on a full disk too, since it frees space.
        await asyncio.to_thread(self._parts().space.make_way)
        deleted = await knowledge_base.delete(caller.tenant, request.document_ids, _groups(caller))
        missing = [each for each in dict.fromkeys(request.document_ids) if each not in deleted]
        return retriever_pb2.DeleteDocumentsResponse(deleted=len(deleted), missing_ids=missing)

    async def ListDocuments(
        self, request: retriever_pb2.ListDocumentsRequest, context: Any
    ) -> retriever_pb2.ListDocumentsResponse:
        caller, knowledge_base, _ = await self._caller(request.knowledge_base)
        for field in ("prefix", "source", "page_token"):
            upload.check_text(field, getattr(request, field), formats.MAX_SOURCE_CHARACTERS)
        limit = bounds.wanted(
            request.page_size, "page_size", default=bounds.DEFAULT_DOCUMENTS, most=bounds.MAX_DOCUMENTS
        )
        library = self._parts().library
        page = await library.run(
            lambda: catalogue.page(
                library,
                knowledge_base.name,
                caller.tenant,
                _groups(caller),
                index_id=knowledge_base.snapshots.current.active.id,
                wanted=catalogue.Filter(request.prefix, request.source),
                after=request.page_token,
                limit=limit,
            )
        )
        return retriever_pb2.ListDocumentsResponse(
            documents=map(_document, page.documents),
            next_page_token="" if page.is_last else page.documents[-1].document_id,
            total=page.total,
        )

    async def GetDocument(
        self, request: retriever_pb2.GetDocumentRequest, context: Any
    ) -> retriever_pb2.GetDocumentResponse:
        caller, knowledge_base, _ = await self._caller(request.knowledge_base)
        upload.check_document_id("document_id", request.document_id)
        max_characters = bounds.wanted(
            request.max_characters,
            "max_characters",
            default=bounds.DEFAULT_TEXT_CHARACTERS,
            most=bounds.MAX_TEXT_CHARACTERS,
        )
        library = self._parts().library
        shown = await library.run(
            lambda: catalogue.show(
                library,
                knowledge_base.name,
                caller.tenant,
                _groups(caller),
                index_id=knowledge_base.snapshots.current.active.id,
                document_id=request.document_id,
                start=request.start_offset,
                max_characters=max_characters,
            )
        )
        if shown is None:
            raise NotFound(
                f"The knowledge base '{knowledge_base.name}' has no document '{request.document_id}'.",
                field="document_id",
            )
        return retriever_pb2.GetDocumentResponse(
            document=_document(shown.facts), sections=map(_section, shown.pieces), next_offset=shown.next_offset
        )

    async def CountDocuments(
        self, request: retriever_pb2.CountDocumentsRequest, context: Any
    ) -> retriever_pb2.CountDocumentsResponse:
        library = self._parts().library
        return retriever_pb2.CountDocumentsResponse(
            counts=[
                retriever_pb2.DocumentCount(tenant=tenant, knowledge_base=knowledge_base, documents=count)
                for tenant, knowledge_base, count in await library.run(library.counts)
            ]
        )

    async def _caller(self, name: str) -> tuple[identity.Caller, KnowledgeBase, specs.KnowledgeBase]:
        """The caller, and the knowledge base if it may use it. Raises InvalidArgument, NotFound, PermissionDenied."""
        caller = identity.current()
        if not name:
            raise InvalidArgument("knowledge_base must name one of factory.yaml's.", field="knowledge_base")
        factory = self._source.current
        known.tenant(factory, caller.tenant)
        spec = known.knowledge_base(factory, caller.tenant, name)
        return caller, await self._parts().knowledge_base(spec), spec


def _groups(caller: identity.Caller) -> tuple[str, ...] | None:
    """The caller's groups, for access lists; None: it may see all of the tenant's documents."""
    return None if "operate" in caller.permissions else caller.groups


def _query(request: retriever_pb2.SearchRequest, default_limit: int) -> Query:
    if len(request.query) > MAX_QUERY_CHARACTERS:
        raise InvalidArgument(
            f"query has {len(request.query)} characters; at most {MAX_QUERY_CHARACTERS} are accepted.", field="query"
        )
    text = clean(request.query)
    if not text:
        raise InvalidArgument("query must hold text to search for.", field="query")
    if request.limit > MAX_LIMIT:
        raise InvalidArgument(f"limit must be 1 to {MAX_LIMIT}, or 0 for the default.", field="limit")
    if request.mode not in _MODES:
        raise InvalidArgument(f"mode {request.mode} is unknown; use one of SearchMode.", field="mode")
    upload.check_metadata("filter", request.filter)
    upload.check_metadata("search_options.filter", request.options.filter)
    upload.check_language("language", request.language)
    return Query(
        text,
        request.limit or default_limit,
        _MODES[request.mode],
        {**request.filter, **request.options.filter},
        upload.language(request.language),
        request.index_version,
    )


def _search_response(found: SearchResult, reading: Reading | None) -> retriever_pb2.SearchResponse:
    return retriever_pb2.SearchResponse(
        passages=[_passage(passage, score) for passage, score in found.passages],
        index_version=found.index_version,
        term_coverage=found.term_coverage,
        reading=types_pb2.Reading(documents_done=reading.done, documents_total=reading.total) if reading else None,
    )


def _passage(passage: Passage, score: float) -> types_pb2.Passage:
    return types_pb2.Passage(
        passage_id=passage.passage_id,
        document_id=passage.document_id,
        text=passage.text,
        title=passage.title,
        uri=passage.uri,
        headings=passage.headings,
        start_offset=passage.start,
        end_offset=passage.end,
        score=score,
        language=passage.language,
        metadata=passage.metadata,
    )


def _document(facts: catalogue.Facts) -> types_pb2.Document:
    message = types_pb2.Document(
        document_id=facts.document_id,
        uri=facts.uri,
        title=facts.title,
        language=facts.language,
        media_type=facts.origin.media_type,
        size_bytes=facts.origin.size_bytes,
        passages=facts.passages,
        allowed_groups=facts.allowed_groups,
        metadata=facts.metadata,
        source=facts.origin.source,
    )
    if facts.origin.store_time:
        message.store_time.FromNanoseconds(int(facts.origin.store_time * 1e9))
    return message


def _section(piece: catalogue.Piece) -> types_pb2.DocumentSection:
    return types_pb2.DocumentSection(
        headings=piece.headings,
        text=piece.text,
        start_offset=piece.start,
        end_offset=piece.start + len(piece.text),
    )


def _ingest_response(result: Result, index_version: str) -> retriever_pb2.IngestResponse:
    response = retriever_pb2.IngestResponse(
        document_id=result.document_id,
        outcome=_OUTCOMES[result.outcome],
        passages=result.passages,
        index_version=index_version,
    )
    if result.error is not None:
        response.error_message = result.error.message
        response.error_reason = result.error.reason.value
        response.index_version = ""
    return response
