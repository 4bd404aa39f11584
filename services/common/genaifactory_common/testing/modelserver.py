"""A model server that answers from a script, and records what it was asked; a real gRPC service.

    fake = modelserver.FakeModelServer([errors.Overloaded("full"), modelserver.answer("Xin", " chào")])
    async with testing.served(fake.app()) as channel: ...

Each Generate takes the next reply; the last one serves all further calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import testing
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry

HANG = "hang"
Step = modelserver_pb2.GenerateResponse | FactoryError | str
"""A message to send, an error to end with, or HANG."""


def text(*texts: str) -> list[Step]:
    """The messages of some pieces of text."""
    return [modelserver_pb2.GenerateResponse(delta=piece) for piece in texts]


def answer(
    *texts: str,
    finish_reason: types_pb2.FinishReason.ValueType = types_pb2.FINISH_REASON_STOP,
    usage: tuple[int, int] = (10, 5),
) -> list[Step]:
    """A good answer, one message for each text. usage: prompt and completion tokens."""
    counts = types_pb2.TokenUsage(prompt_tokens=usage[0], completion_tokens=usage[1])
    return [*text(*texts), modelserver_pb2.GenerateResponse(finish_reason=finish_reason, usage=counts)]


class FakeModelServer(modelserver_pb2_grpc.ModelServiceServicer):
    """The servicer."""

    def __init__(self, replies: Sequence[Sequence[Step] | FactoryError] = ()) -> None:
        self._replies = replies
        self.requests: list[modelserver_pb2.GenerateRequest] = []
        self.cancelled = asyncio.Event()
        """Set when a call was cancelled while it ran."""

    def app(self, telemetry: Telemetry | None = None) -> ServiceApp:
        """For `testing.served`."""

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            yield

        return ServiceApp(
            name="modelserver",
            telemetry=telemetry or Telemetry("modelserver"),
            service_names=("genaifactory.modelserver.v1.ModelService",),
            register=lambda server: modelserver_pb2_grpc.add_ModelServiceServicer_to_server(self, server),
            lifespan=lifespan,
            verifier=testing.VERIFIER,
        )

    async def Generate(
        self,
        request: modelserver_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[modelserver_pb2.GenerateRequest, modelserver_pb2.GenerateResponse],
    ) -> AsyncIterator[modelserver_pb2.GenerateResponse]:
        """Plays the next reply."""
        self.requests.append(request)
        reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        try:
            for step in [reply] if isinstance(reply, FactoryError) else reply:
                if isinstance(step, FactoryError):
                    raise step
                if isinstance(step, str):
                    await asyncio.Event().wait()
                else:
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def Embed(
        self,
        request: modelserver_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[modelserver_pb2.EmbedRequest, modelserver_pb2.EmbedResponse],
    ) -> modelserver_pb2.EmbedResponse:
        """A vector of the text's length and its number for each text."""
        vectors = [modelserver_pb2.Embedding(values=[len(text), i]) for i, text in enumerate(request.texts)]
        return modelserver_pb2.EmbedResponse(
            embeddings=vectors, usage=types_pb2.TokenUsage(prompt_tokens=sum(map(len, request.texts)))
        )
