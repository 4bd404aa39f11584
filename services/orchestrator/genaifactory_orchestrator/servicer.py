"""OrchestratorService: converts between messages and the domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import conversation, identity
from genaifactory_orchestrator.answers import request as question
from genaifactory_orchestrator.answers.events import Done, Event, Opened, RouteChosen
from genaifactory_orchestrator.answers.pipeline import Answerer
from genaifactory_orchestrator.answers.retrieval import RetrievedPassages
from genaifactory_orchestrator.embedding import Embedder
from genaifactory_orchestrator.models.backend import Delta, ToolCallDelta
from genaifactory_orchestrator.stores.conversations import Conversations, Key

# Events that may wait for a slow client; beyond, the guardrail and the model have to wait.
_MAX_WAITING_EVENTS = 16
# Events that `answer_only` leaves out.
_ABOUT_THE_ANSWER = (RouteChosen, RetrievedPassages, types_pb2.Verdict)

Context = grpc.aio.ServicerContext[object, object]


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """The gRPC service."""

    def __init__(self, answerer: Answerer, embedder: Embedder, conversations: Conversations) -> None:
        self._answerer = answerer
        self._embedder = embedder
        self._conversations = conversations

    async def Answer(
        self, request: orchestrator_pb2.AnswerRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.AnswerResponse]:
        """Runs the answer in a task of its own, so that a cancelled call cancels all of it at once."""
        asked = question.from_request(request)
        events: asyncio.Queue[Event | None] = asyncio.Queue(_MAX_WAITING_EVENTS)

        async def emit(event: Event) -> None:
            if not request.answer_only or not isinstance(event, _ABOUT_THE_ANSWER):
                await events.put(event)

        async def run() -> None:
            try:
                await self._answerer.answer(asked, emit)
            except Exception:
                await events.put(None)
                raise
            await events.put(None)

        answering = asyncio.create_task(run(), name=f"answer-{asked.request_id}")
        try:
            opened: Opened | None = None
            while (event := await events.get()) is not None:
                if isinstance(event, Opened):
                    opened = event
                    continue
                response = _response(event)
                if opened is not None:  # sent with the first event: a message of its own would cost every service
                    _add_opened(response, opened)
                    opened = None
                yield response
            await answering
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    async def Embed(self, request: orchestrator_pb2.EmbedRequest, context: Context) -> orchestrator_pb2.EmbedResponse:
        """Embeds texts."""
        question.check_request_id(request.request_id)
        conversation.check_texts(request.texts, "texts")
        result, cost = await self._embedder.embed(request.request_id, request.model, list(request.texts))
        return orchestrator_pb2.EmbedResponse(
            embeddings=[orchestrator_pb2.Embedding(values=vector) for vector in result.vectors],
            usage=result.usage.to_proto(),
            cost_micros=cost.rounded_micros,
            currency=cost.currency,
        )

    async def DeleteConversation(
        self, request: orchestrator_pb2.DeleteConversationRequest, context: Context
    ) -> orchestrator_pb2.DeleteConversationResponse:
        """Erases a conversation of the caller."""
        caller = identity.current()
        conversation.check_conversation_id(request.conversation_id)
        existed = await self._conversations.erase(Key(caller.tenant, caller.principal, request.conversation_id))
        return orchestrator_pb2.DeleteConversationResponse(existed=existed)

    async def CountConversations(
        self, request: orchestrator_pb2.CountConversationsRequest, context: Context
    ) -> orchestrator_pb2.CountConversationsResponse:
        """Counts the conversations of all tenants."""
        return orchestrator_pb2.CountConversationsResponse(
            counts=[
                orchestrator_pb2.ConversationCount(tenant=tenant, conversations=count)
                for tenant, count in await self._conversations.counts()
            ]
        )


def _response(event: Event) -> orchestrator_pb2.AnswerResponse:
    response = orchestrator_pb2.AnswerResponse()
    match event:
        case Delta():
            response.delta.text = event.text
            response.delta.choice = event.choice
            response.delta.logprobs.extend(event.logprobs)
        case ToolCallDelta():
            response.tool_call.tool_call.CopyFrom(event.tool_call)
            response.tool_call.choice = event.choice
        case RouteChosen():
            response.route.route = event.route
            response.route.model = event.model
            response.route.prompt_version = event.prompt_version
            response.route.split = event.split
            response.route.arm = event.arm
        case RetrievedPassages():
            response.passages.passages.extend(event.passages)
            response.passages.index_version = event.index_version
            response.passages.SetInParent()
        case types_pb2.Verdict():
            response.verdict.CopyFrom(event)
        case Done():
            response.done.finish_reasons.extend(event.finish_reasons)
            response.done.usage.CopyFrom(event.usage.to_proto())
            response.done.citations.extend(event.citations)
            response.done.passages.extend(event.passages)
            response.done.model = event.model
            response.done.cached = event.cached
            response.done.refused = event.refused
            response.done.cost_micros = event.cost.rounded_micros
            response.done.currency = event.cost.currency
            if event.reading is not None:
                response.done.reading.CopyFrom(event.reading)
    return response


def _add_opened(response: orchestrator_pb2.AnswerResponse, opened: Opened) -> None:
    response.opened.cache = opened.cache
    for entity_type, count in sorted(opened.masked.items()):
        response.opened.masked.add(entity_type=entity_type, count=count)
