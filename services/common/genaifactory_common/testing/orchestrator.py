"""A fake orchestrator for tests of the gateway: a real gRPC service with scripted answers.

fake = FakeOrchestrator()
fake.script = [delta("Xin "), delta("chào"), done()]
async with served(fake.app(VERIFIER)) as channel: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import identity, tokens
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry

Step = orchestrator_pb2.AnswerResponse | FactoryError | asyncio.Event
"""A response to send, an error to raise, or an event to wait for."""
Script = Sequence[Step]


def route(name: str = "chat", model: str = "extractive") -> orchestrator_pb2.AnswerResponse:
    """The first event of an answer."""
    return orchestrator_pb2.AnswerResponse(route=orchestrator_pb2.RouteChosen(route=name, model=model))


def opened(
    event: orchestrator_pb2.AnswerResponse,
    *,
    masked: Mapping[str, int] | None = None,
    cache: types_pb2.CacheUse.ValueType = types_pb2.CACHE_USE_MISS,
) -> orchestrator_pb2.AnswerResponse:
    """The event as the first one of an answer, with masks and the use of the cache."""
    event.opened.cache = cache
    for entity_type, count in (masked or {}).items():
        event.opened.masked.add(entity_type=entity_type, count=count)
    return event


def delta(
    text: str, *, choice: int = 0, logprobs: Iterable[types_pb2.TokenLogprob] = ()
) -> orchestrator_pb2.AnswerResponse:
    """A piece of text."""
    return orchestrator_pb2.AnswerResponse(
        delta=orchestrator_pb2.TextDelta(text=text, choice=choice, logprobs=logprobs)
    )


def tool_call(
    *, call_id: str = "", name: str = "", arguments: str = "", index: int = 0, choice: int = 0
) -> orchestrator_pb2.AnswerResponse:
    """A piece of a tool call."""
    call = types_pb2.ToolCall(id=call_id, name=name, arguments_json=arguments, index=index)
    return orchestrator_pb2.AnswerResponse(tool_call=orchestrator_pb2.ToolCallDelta(tool_call=call, choice=choice))


def done(
    *,
    prompt_tokens: int = 7,
    completion_tokens: int = 3,
    cached_prompt_tokens: int = 0,
    citations: Iterable[types_pb2.Citation] = (),
    finish_reasons: Iterable[types_pb2.FinishReason.ValueType] = (types_pb2.FINISH_REASON_STOP,),
) -> orchestrator_pb2.AnswerResponse:
    """The end of an answer."""
    return orchestrator_pb2.AnswerResponse(
        done=orchestrator_pb2.AnswerDone(
            finish_reasons=finish_reasons,
            usage=types_pb2.TokenUsage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cached_prompt_tokens=cached_prompt_tokens,
            ),
            citations=citations,
            model="extractive",
        )
    )


class FakeOrchestrator(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Answers every request with `script`, and records requests and callers."""

    def __init__(self) -> None:
        self.script: Script | Callable[[orchestrator_pb2.AnswerRequest], Script] = [route(), delta("Xin chào."), done()]
        """The steps of an answer, or a function from the request to them."""
        self.embedding: Callable[[str], Sequence[float]] = lambda text: [0.6, 0.8, float(len(text))]
        """The vector of a text."""
        self.embed_at_most = 1 << 20
        """Texts of a request that get a vector."""
        self.embed_error: FactoryError | None = None
        self.embed_waits_for: asyncio.Event | None = None
        self.requests: list[orchestrator_pb2.AnswerRequest] = []
        self.embed_requests: list[orchestrator_pb2.EmbedRequest] = []
        self.callers: list[identity.Caller] = []
        """The signed caller of each request."""
        self.request_ids: list[str] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.started = asyncio.Event()
        """Set when a request has arrived."""
        self.cancelled = asyncio.Event()
        """Set when a request has been cancelled."""
        self.conversations: set[str] = set()
        """Ids of the stored conversations."""
        self.sent = 0
        """Events that were passed to gRPC."""

    def app(self, verifier: tokens.Verifier, telemetry: Telemetry | None = None) -> ServiceApp:
        """The service, to be run by `testing.served`."""
        return ServiceApp(
            name="orchestrator",
            telemetry=telemetry or Telemetry("orchestrator"),
            service_names=("genaifactory.orchestrator.v1.OrchestratorService",),
            register=lambda server: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server),
            lifespan=_nothing_to_open,
            verifier=verifier,
        )

    async def Answer(
        self, request: orchestrator_pb2.AnswerRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[orchestrator_pb2.AnswerResponse]:
        """Plays the script."""
        self._note(context)
        self.requests.append(request)
        self.started.set()
        try:
            for step in self.script(request) if callable(self.script) else self.script:
                if isinstance(step, FactoryError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    self.sent += 1
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def Embed(
        self, request: orchestrator_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orchestrator_pb2.EmbedResponse:
        """Embeds with `embedding`, or fails with `embed_error`."""
        self._note(context)
        self.embed_requests.append(request)
        self.started.set()
        if self.embed_waits_for is not None:
            try:
                await self.embed_waits_for.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.embed_error is not None:
            raise self.embed_error
        return orchestrator_pb2.EmbedResponse(
            embeddings=[
                orchestrator_pb2.Embedding(values=self.embedding(text)) for text in request.texts[: self.embed_at_most]
            ],
            usage=types_pb2.TokenUsage(prompt_tokens=sum(len(text.split()) for text in request.texts)),
        )

    async def DeleteConversation(
        self, request: orchestrator_pb2.DeleteConversationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orchestrator_pb2.DeleteConversationResponse:
        """Removes one of `conversations`."""
        self._note(context)
        existed = request.conversation_id in self.conversations
        self.conversations.discard(request.conversation_id)
        return orchestrator_pb2.DeleteConversationResponse(existed=existed)

    async def CountConversations(
        self, request: orchestrator_pb2.CountConversationsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> orchestrator_pb2.CountConversationsResponse:
        """Counts `conversations` as one tenant's."""
        self._note(context)
        count = orchestrator_pb2.ConversationCount(tenant="gone", conversations=len(self.conversations))
        return orchestrator_pb2.CountConversationsResponse(counts=[count])

    def _note(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.callers.append(identity.current())
        self.request_ids.append(identity.request_id())
        self.metadata.append(dict(context.invocation_metadata() or ()))


@asynccontextmanager
async def _nothing_to_open() -> AsyncIterator[None]:
    yield
