"""GatewayService, the gRPC API, with the same admission as HTTP."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory_common import bounds, conversation
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.interceptors import Metadata
from genaifactory_gateway import rules
from genaifactory_gateway.adapters import Adapters
from genaifactory_gateway.admission import Admission, Entry
from genaifactory_gateway.counts import Counts
from genaifactory_gateway.documents import Documents
from genaifactory_gateway.guardrails import Guardrails
from genaifactory_gateway.indexes import Indexes
from genaifactory_gateway.records import Records
from genaifactory_gateway.transfers import Transfers
from genaifactory_gateway.uploads import Uploads
from genaifactory_gateway.upstream import Feedback, Upstream

_Context = grpc.aio.ServicerContext[Any, Any]

_RATINGS = {
    gateway_pb2.RATING_UNSPECIFIED: monitor_pb2.RATING_UNSPECIFIED,
    gateway_pb2.RATING_UP: monitor_pb2.RATING_UP,
    gateway_pb2.RATING_DOWN: monitor_pb2.RATING_DOWN,
}


@dataclass(frozen=True)
class Parts:
    """The domain objects that HTTP and gRPC share."""

    admission: Admission
    upstream: Upstream
    documents: Documents
    transfers: Transfers
    uploads: Uploads
    indexes: Indexes
    records: Records
    guardrails: Guardrails
    counts: Counts
    adapters: Adapters


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """The service."""

    def __init__(self, parts: Parts) -> None:
        self._admission = parts.admission
        self._upstream = parts.upstream
        self._documents = parts.documents
        self._uploads = parts.uploads
        self._indexes = parts.indexes
        self._records = parts.records
        self._guardrails = parts.guardrails
        self._counts = parts.counts
        self._adapters = parts.adapters

    async def Chat(
        self, request: gateway_pb2.ChatRequest, context: _Context
    ) -> AsyncIterator[gateway_pb2.ChatResponse]:
        """Answers a conversation."""
        async with self._admit(context, "Chat", request) as entry:
            conversation.check(request)
            route = entry.route(request.model)
            answer = self._upstream.answer(entry, route, _answer_request(request, entry.request_id))
            async with aclosing(answer) as events:
                known = orchestrator_pb2.AnswerOpened()
                async for event in events:
                    if event.HasField("opened"):
                        known = event.opened
                    yield _chat_response(event, entry.request_id, known)

    async def Embed(self, request: gateway_pb2.EmbedRequest, context: _Context) -> gateway_pb2.EmbedResponse:
        """Embeds texts."""
        async with self._admit(context, "Embed", request) as entry:
            conversation.check_texts(request.texts, "texts")
            model = entry.embedding_model(request.model)
            response = await self._upstream.embed(entry, model, list(request.texts))
            return gateway_pb2.EmbedResponse(
                embeddings=[gateway_pb2.Embedding(values=vector.values) for vector in response.embeddings],
                usage=response.usage,
            )

    async def ListModels(
        self, request: gateway_pb2.ListModelsRequest, context: _Context
    ) -> gateway_pb2.ListModelsResponse:
        """Lists the routes and models that the key may use."""
        async with self._admit(context, "ListModels", request) as entry:
            await entry.reserve()
            return gateway_pb2.ListModelsResponse(
                models=[
                    gateway_pb2.Model(name=o.name, task=o.task, description=o.description, vision=o.vision)
                    for o in entry.offers()
                ]
            )

    async def SubmitFeedback(
        self, request: gateway_pb2.SubmitFeedbackRequest, context: _Context
    ) -> gateway_pb2.SubmitFeedbackResponse:
        """Stores a judgement of an answer."""
        async with self._admit(context, "SubmitFeedback", request) as entry:
            feedback = _feedback(request)
            feedback_id, known = await self._upstream.record_feedback(entry, feedback)
            return gateway_pb2.SubmitFeedbackResponse(feedback_id=feedback_id, request_known=known)

    async def GetUsage(self, request: gateway_pb2.GetUsageRequest, context: _Context) -> gateway_pb2.GetUsageResponse:
        """Returns usage: the tenant's with the permission 'usage', the key's own without it."""
        async with self._admit(context, "GetUsage", request) as entry:
            start = request.start_time if request.HasField("start_time") else None
            end = request.end_time if request.HasField("end_time") else None
            rows = await self._upstream.usage(entry, start, end)
            return gateway_pb2.GetUsageResponse(rows=[_usage_row(row) for row in rows])

    async def ListDocuments(
        self, request: gateway_pb2.ListDocumentsRequest, context: _Context
    ) -> gateway_pb2.ListDocumentsResponse:
        """Lists the tenant's documents."""
        async with self._admit(context, "ListDocuments", request) as entry:
            return await self._documents.list(entry, request)

    async def GetDocument(
        self, request: gateway_pb2.GetDocumentRequest, context: _Context
    ) -> gateway_pb2.GetDocumentResponse:
        """Shows a document."""
        async with self._admit(context, "GetDocument", request) as entry:
            return await self._documents.get(entry, request)

    async def DeleteDocuments(
        self, request: gateway_pb2.DeleteDocumentsRequest, context: _Context
    ) -> gateway_pb2.DeleteDocumentsResponse:
        """Removes documents."""
        async with self._admit(context, "DeleteDocuments", request) as entry:
            return await self._documents.delete(entry, request)

    async def Ingest(
        self, request_iterator: AsyncIterator[gateway_pb2.IngestRequest], context: _Context
    ) -> AsyncIterator[gateway_pb2.IngestResponse]:
        """Stores documents."""
        async with self._admit(context, "Ingest") as entry:
            requests = aiter(request_iterator)
            opened = await self._uploads.opened(entry, requests)

            async def accepted() -> None:
                await context.send_initial_metadata(())

            async with aclosing(self._uploads.ingest(entry, opened, requests, accepted=accepted)) as results:
                async for result in results:
                    yield result

    async def ListIndexes(
        self, request: gateway_pb2.ListIndexesRequest, context: _Context
    ) -> gateway_pb2.ListIndexesResponse:
        """Lists index versions."""
        async with self._admit(context, "ListIndexes", request) as entry:
            return await self._indexes.call(entry, request, gateway_pb2.ListIndexesResponse)

    async def BuildIndex(
        self, request: gateway_pb2.BuildIndexRequest, context: _Context
    ) -> AsyncIterator[gateway_pb2.BuildIndexResponse]:
        """Builds an index version."""
        async with (
            self._admit(context, "BuildIndex", request) as entry,
            aclosing(self._indexes.build(entry, request)) as steps,
        ):
            async for step in steps:
                yield step

    async def SwapIndex(
        self, request: gateway_pb2.SwapIndexRequest, context: _Context
    ) -> gateway_pb2.SwapIndexResponse:
        """Makes an index version the active one."""
        async with self._admit(context, "SwapIndex", request) as entry:
            return await self._indexes.call(entry, request, gateway_pb2.SwapIndexResponse)

    async def DropIndex(
        self, request: gateway_pb2.DropIndexRequest, context: _Context
    ) -> gateway_pb2.DropIndexResponse:
        """Deletes an index version that does not serve."""
        async with self._admit(context, "DropIndex", request) as entry:
            return await self._indexes.call(entry, request, gateway_pb2.DropIndexResponse)

    async def QueryInteractions(
        self, request: gateway_pb2.QueryInteractionsRequest, context: _Context
    ) -> gateway_pb2.QueryInteractionsResponse:
        """Lists the tenant's interactions."""
        async with self._admit(context, "QueryInteractions", request) as entry:
            return await self._records.query(entry, request)

    async def ExportInteractions(
        self, request: gateway_pb2.ExportInteractionsRequest, context: _Context
    ) -> AsyncIterator[gateway_pb2.ExportInteractionsResponse]:
        """Streams the tenant's interactions as JSON."""
        async with (
            self._admit(context, "ExportInteractions", request) as entry,
            aclosing(self._records.export(entry, request.filter)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def RecordDriftReport(
        self, request: gateway_pb2.RecordDriftReportRequest, context: _Context
    ) -> gateway_pb2.RecordDriftReportResponse:
        """Stores a verdict on the tenant's interactions."""
        async with self._admit(context, "RecordDriftReport", request) as entry:
            return await self._records.record_drift(entry, request)

    async def GetDriftReport(
        self, request: gateway_pb2.GetDriftReportRequest, context: _Context
    ) -> gateway_pb2.GetDriftReportResponse:
        """Returns verdicts on the tenant's interactions."""
        async with self._admit(context, "GetDriftReport", request) as entry:
            return await self._records.drift(entry, request)

    async def GetReleaseStats(
        self, request: gateway_pb2.GetReleaseStatsRequest, context: _Context
    ) -> gateway_pb2.GetReleaseStatsResponse:
        """Returns what each release of a route did."""
        async with self._admit(context, "GetReleaseStats", request) as entry:
            return await self._records.release_stats(entry, request)

    async def CheckTexts(
        self, request: gateway_pb2.CheckTextsRequest, context: _Context
    ) -> gateway_pb2.CheckTextsResponse:
        """Checks texts by a policy."""
        async with self._admit(context, "CheckTexts", request) as entry:
            return await self._guardrails.check(entry, request)

    async def DeleteConversation(
        self, request: gateway_pb2.DeleteConversationRequest, context: _Context
    ) -> gateway_pb2.DeleteConversationResponse:
        """Deletes a conversation of the caller."""
        async with self._admit(context, "DeleteConversation", request) as entry:
            existed = await self._upstream.delete_conversation(entry, request.conversation_id)
            return gateway_pb2.DeleteConversationResponse(existed=existed)

    async def CountDocuments(
        self, request: gateway_pb2.CountDocumentsRequest, context: _Context
    ) -> gateway_pb2.CountDocumentsResponse:
        """Counts documents of all tenants."""
        async with self._admit(context, "CountDocuments", request) as entry:
            return await self._counts.documents(entry)

    async def CountConversations(
        self, request: gateway_pb2.CountConversationsRequest, context: _Context
    ) -> gateway_pb2.CountConversationsResponse:
        """Counts conversations of all tenants."""
        async with self._admit(context, "CountConversations", request) as entry:
            return await self._counts.conversations(entry)

    async def CountRequests(
        self, request: gateway_pb2.CountRequestsRequest, context: _Context
    ) -> gateway_pb2.CountRequestsResponse:
        """Counts recorded requests of all tenants."""
        async with self._admit(context, "CountRequests", request) as entry:
            return await self._counts.requests(entry)

    async def LoadAdapter(
        self, request: gateway_pb2.LoadAdapterRequest, context: _Context
    ) -> gateway_pb2.LoadAdapterResponse:
        """Loads an adapter on every replica of the model server."""
        async with self._admit(context, "LoadAdapter", request) as entry:
            return await self._adapters.load(entry, request)

    async def UnloadAdapter(
        self, request: gateway_pb2.UnloadAdapterRequest, context: _Context
    ) -> gateway_pb2.UnloadAdapterResponse:
        """Unloads an adapter from every replica of the model server."""
        async with self._admit(context, "UnloadAdapter", request) as entry:
            return await self._adapters.unload(entry, request)

    @asynccontextmanager
    async def _admit(self, context: _Context, rpc: str, request: Message | None = None) -> AsyncIterator[Entry]:
        """Admits a gRPC call, with a new request id; a message counts against the memory for bodies."""
        key = authorization(context.invocation_metadata() or ())
        async with self._admission.admit(key, rpc, f"req-{uuid.uuid4().hex}") as entry:
            if request is not None:
                entry.hold(request.ByteSize())
            yield entry


def authorization(metadata: Metadata) -> str | None:
    """The value of `authorization` in a call's metadata. Raises InvalidArgument for more than one."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) > 1:
        raise InvalidArgument(
            f"The call must not have more than one authorization in its metadata; it has {len(values)}."
        )
    if not values:
        return None
    return values[0] if isinstance(values[0], str) else values[0].decode("latin-1")


def _answer_request(request: gateway_pb2.ChatRequest, request_id: str) -> orchestrator_pb2.AnswerRequest:
    return orchestrator_pb2.AnswerRequest(
        request_id=request_id,
        route=request.model,
        messages=request.messages,
        sampling=request.sampling if request.HasField("sampling") else None,
        tools=request.tools,
        tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        output_format=request.output_format if request.HasField("output_format") else None,
        conversation_id=request.conversation_id,
        user=request.user,
        fresh=request.fresh,
        search_options=request.search_options if request.HasField("search_options") else None,
        evaluation=request.evaluation if request.HasField("evaluation") else None,
        arm=request.arm,
        answer_only=True,  # route, passages and verdicts are for the record, not for clients
    )


def _chat_response(
    event: orchestrator_pb2.AnswerResponse, request_id: str, known: orchestrator_pb2.AnswerOpened
) -> gateway_pb2.ChatResponse:
    if event.HasField("delta"):
        delta = event.delta
        return gateway_pb2.ChatResponse(
            request_id=request_id, delta=delta.text, choice=delta.choice, logprobs=delta.logprobs
        )
    if event.HasField("tool_call"):
        piece = event.tool_call
        return gateway_pb2.ChatResponse(request_id=request_id, tool_call=piece.tool_call, choice=piece.choice)
    done = event.done
    return gateway_pb2.ChatResponse(
        request_id=request_id,
        done=gateway_pb2.ChatDone(
            finish_reasons=done.finish_reasons,
            usage=done.usage,
            citations=done.citations,
            passages=done.passages,
            model=done.model,
            cached=done.cached,
            reading=done.reading if done.HasField("reading") else None,
            masked=known.masked,
            cache=known.cache,
        ),
    )


def _feedback(request: gateway_pb2.SubmitFeedbackRequest) -> Feedback:
    if not re.fullmatch(rules.REQUEST_ID, request.request_id):
        raise InvalidArgument("'request_id' must be that of an answer: req- and 32 hex digits.", field="request_id")
    for field, most in (
        ("correction", bounds.MAX_CORRECTION_CHARACTERS),
        ("comment", bounds.MAX_COMMENT_CHARACTERS),
        ("idempotency_key", rules.MAX_IDEMPOTENCY_KEY_CHARACTERS),
    ):
        if len(getattr(request, field)) > most:
            raise InvalidArgument(f"'{field}' may hold at most {most} characters.", field=field)
    return Feedback(
        request_id=request.request_id,
        rating=_RATINGS.get(request.rating, monitor_pb2.RATING_UNSPECIFIED),
        correction=request.correction,
        comment=request.comment,
        ground_truth=request.ground_truth if request.HasField("ground_truth") else None,
        idempotency_key=request.idempotency_key,
    )


def _usage_row(row: monitor_pb2.UsageRow) -> gateway_pb2.UsageRow:
    return gateway_pb2.UsageRow(
        day=row.day,
        key_id=row.key_id,
        model=row.model,
        requests=row.requests,
        errors=row.errors,
        usage=row.usage,
        cost_micros=row.cost_micros,
        currency=row.currency,
    )
