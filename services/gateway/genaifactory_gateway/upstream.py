"""Calls to orchestrator and monitor for admitted requests, over HTTP and gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc.aio
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory_common import channels, conversation, identity, images, specs
from genaifactory_common.errors import Internal, InvalidArgument, Overloaded, Unavailable, UpstreamFailed
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.limits import Amounts

# Added to a route's timeout, so that the orchestrator's error arrives before ours.
_GRACE_SECONDS = 1.0
# The platform failed: a prompt to which nothing was answered is not charged then, and is whoever else ends the request.
_FAILED = (Internal, Overloaded, Unavailable, UpstreamFailed)


@dataclass(frozen=True)
class Channels:
    """Channels to the services behind the gateway."""

    orchestrator: grpc.aio.Channel
    monitor: grpc.aio.Channel
    retriever: grpc.aio.Channel
    safety: grpc.aio.Channel


@dataclass(frozen=True)
class Feedback:
    """A judgement of an answer. `ground_truth` is free-form."""

    request_id: str
    rating: monitor_pb2.Rating.ValueType
    correction: str
    comment: str
    ground_truth: Struct | None
    idempotency_key: str


class Upstream:
    """The stubs of the orchestrator and of monitor."""

    def __init__(self, to: Channels, *, record_timeout_seconds: float, conversations_timeout_seconds: float) -> None:
        self._orchestrator = orchestrator_pb2_grpc.OrchestratorServiceStub(to.orchestrator)
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(to.monitor)
        self._record_timeout_seconds = record_timeout_seconds
        self._conversations_timeout_seconds = conversations_timeout_seconds

    async def answer(
        self, entry: Entry, route: specs.Route, request: orchestrator_pb2.AnswerRequest
    ) -> AsyncGenerator[orchestrator_pb2.AnswerResponse, None]:
        """Reserves, and yields the events for the client: deltas, tool calls and, last, done.

        The entry is charged for the prompt from its dispatch on, and for what was delivered, also when the client
        leaves before the end. Raises FactoryError.
        """
        if (field := images.first(request.messages)) is not None:
            entry.require_vision(route, field)
        if request.HasField("evaluation") or request.arm:
            identity.require_any({"evaluate"}, entry.holder.role.name, entry.holder.role.permissions)
        if request.HasField("search_options") and route.knowledge_base is None:
            raise InvalidArgument(
                f"The model '{route.name}' searches no documents; leave 'search_options' out.", field="search_options"
            )
        prompt_tokens = conversation.estimated_prompt_tokens(request.messages, request.tools, request.output_format)
        choices = request.sampling.n or 1
        answer_tokens = choices * (request.sampling.max_tokens or route.max_output_tokens)
        await entry.reserve({"tokens": prompt_tokens + answer_tokens})
        characters = 0
        entry.used({"tokens": prompt_tokens})
        call = channels.stream(
            self._orchestrator.Answer, request, timeout_seconds=route.timeout_seconds + _GRACE_SECONDS
        )
        try:
            async with aclosing(call) as events:
                async for event in events:
                    match event.WhichOneof("event"):
                        case "delta":
                            characters += len(event.delta.text)
                        case "tool_call":
                            characters += len(event.tool_call.tool_call.arguments_json)
                        case "done":
                            usage = event.done.usage
                            entry.used({"tokens": usage.prompt_tokens + usage.completion_tokens})
                            yield event
                            return
                        case _:  # route, passages and verdicts are for the record, not for clients
                            continue
                    entry.used({"tokens": prompt_tokens + characters // 4})
                    yield event
            raise UpstreamFailed("The answer ended before it was complete; try again.")
        except _FAILED:
            if not characters:
                entry.used({"tokens": 0})
            raise

    async def embed(self, entry: Entry, model: specs.Model, texts: list[str]) -> orchestrator_pb2.EmbedResponse:
        """Reserves and embeds; the texts are charged as `answer` charges a prompt. Raises FactoryError."""
        amounts: Amounts = {"tokens": sum(map(conversation.estimated_tokens, texts))}
        await entry.reserve(amounts)
        entry.used(amounts)
        request = orchestrator_pb2.EmbedRequest(request_id=entry.request_id, model=model.name, texts=texts)
        try:
            response = await channels.unary(
                self._orchestrator.Embed, request, timeout_seconds=model.timeout_seconds + _GRACE_SECONDS
            )
            if len(response.embeddings) != len(texts):
                raise UpstreamFailed("The model returned a wrong number of vectors; try again.")
        except _FAILED:
            entry.used({"tokens": 0})
            raise
        entry.used({"tokens": response.usage.prompt_tokens})
        return response

    async def delete_conversation(self, entry: Entry, conversation_id: str) -> bool:
        """Deletes a stored conversation of the caller; returns whether it existed. Raises FactoryError."""
        conversation.check_conversation_id(conversation_id)
        await entry.reserve()
        request = orchestrator_pb2.DeleteConversationRequest(conversation_id=conversation_id)
        done = await channels.unary(
            self._orchestrator.DeleteConversation, request, timeout_seconds=self._conversations_timeout_seconds
        )
        return done.existed

    async def record_feedback(self, entry: Entry, feedback: Feedback) -> tuple[str, bool]:
        """Stores feedback; returns its id, and whether its request is recorded yet.

        The record of a request may arrive after the feedback on it; monitor joins them. Raises FactoryError.
        """
        if not (feedback.rating or feedback.correction or feedback.comment or feedback.ground_truth):
            raise InvalidArgument(
                "Feedback must contain a rating, a correction, a comment or a ground_truth.", field="rating"
            )
        await entry.reserve()
        # OpenAI's clients have the completion's id, which is the request's with another prefix.
        request_id = "req-" + feedback.request_id.rpartition("-")[2]
        request = monitor_pb2.RecordFeedbackRequest(
            request_id=request_id,
            rating=feedback.rating,
            correction=feedback.correction,
            comment=feedback.comment,
            ground_truth=feedback.ground_truth,
        )
        # Tenant and principal are part of the id, so that feedback of two callers never collides.
        key = feedback.idempotency_key.encode() or request.SerializeToString(deterministic=True)
        scope = f"{entry.holder.tenant.name}\0{entry.holder.principal}\0{request_id}\0".encode()
        request.feedback_id = "fb-" + hashlib.sha256(scope + key).hexdigest()[:32]
        response = await channels.unary(
            self._monitor.RecordFeedback, request, timeout_seconds=self._record_timeout_seconds
        )
        return request.feedback_id, response.interaction_known

    async def usage(self, entry: Entry, start: Timestamp | None, end: Timestamp | None) -> list[monitor_pb2.UsageRow]:
        """Usage by key, model and day: of the caller's tenant, or of its key without the permission 'usage'.

        Raises FactoryError.
        """
        if start is not None and end is not None and start.ToNanoseconds() >= end.ToNanoseconds():
            raise InvalidArgument("'end_time' must be after 'start_time'.", field="end_time")
        await entry.reserve()
        request = monitor_pb2.GetUsageRequest(start_time=start, end_time=end)
        response = await channels.unary(self._monitor.GetUsage, request, timeout_seconds=self._record_timeout_seconds)
        return list(response.rows)
