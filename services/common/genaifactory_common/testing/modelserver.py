"""A fake model server with scripted outputs and errors.

fake = FakeModelServer(["Xin ", "chào"])
async with served(fake.app(VERIFIER)) as channel: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import identity, tokens
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry

Step = str | modelserver_pb2.GenerateResponse | FactoryError | asyncio.Event
"""Text to write, a response to send, an error to raise, or an event to wait for."""


class FakeModelServer(modelserver_pb2_grpc.ModelServiceServicer):
    """Plays a script for each request. A script without a finish reason ends every choice with STOP."""

    def __init__(self, script: Sequence[Step] = ("ok",)) -> None:
        self.script: Sequence[Step] = script
        self.scripts: dict[str, Sequence[Step]] = {}
        """By model; instead of `script`."""
        self.turns: list[Sequence[Step]] = []
        """Scripts of the next requests, one each; instead of both."""
        self.usage = types_pb2.TokenUsage(prompt_tokens=10, completion_tokens=5)
        self.requests: list[modelserver_pb2.GenerateRequest] = []
        self.sent = 0
        """Pieces of text that gRPC has accepted."""
        self.adapters: dict[str, modelserver_pb2.LoadAdapterRequest] = {}
        """The loaded adapters."""
        self.adapter_error: FactoryError | None = None
        """Raised by LoadAdapter."""
        self.callers: list[identity.Caller] = []
        """Of calls of LoadAdapter and UnloadAdapter."""
        self.running = 0
        self.cancelled = 0
        """Requests that were cancelled before their end."""

    async def Generate(
        self, request: modelserver_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[modelserver_pb2.GenerateResponse]:
        """Plays the script."""
        self.requests.append(request)
        self.running += 1
        finished: set[int] = set()
        try:
            script = self.turns.pop(0) if self.turns else self.scripts.get(request.model, self.script)
            for step in script:
                if isinstance(step, FactoryError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, str):
                    for choice in range(request.sampling.n or 1):
                        yield modelserver_pb2.GenerateResponse(delta=step, choice=choice)
                        self.sent += 1
                else:
                    if step.finish_reason:
                        finished.add(step.choice)
                    yield step
            for choice in set(range(request.sampling.n or 1)) - finished:
                yield modelserver_pb2.GenerateResponse(choice=choice, finish_reason=types_pb2.FINISH_REASON_STOP)
            yield modelserver_pb2.GenerateResponse(usage=self.usage)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def Embed(self, request: modelserver_pb2.EmbedRequest, context: Any) -> modelserver_pb2.EmbedResponse:
        """A vector of two components for each text: its length, and 1."""
        vectors = [modelserver_pb2.Embedding(values=[float(len(text)), 1.0]) for text in request.texts]
        return modelserver_pb2.EmbedResponse(
            embeddings=vectors, usage=types_pb2.TokenUsage(prompt_tokens=len(request.texts))
        )

    async def LoadAdapter(
        self, request: modelserver_pb2.LoadAdapterRequest, context: Any
    ) -> modelserver_pb2.LoadAdapterResponse:
        """Stores the request, or raises `adapter_error`."""
        self.callers.append(identity.current())
        if self.adapter_error is not None:
            raise self.adapter_error
        self.adapters[request.name] = request
        return modelserver_pb2.LoadAdapterResponse()

    async def UnloadAdapter(
        self, request: modelserver_pb2.UnloadAdapterRequest, context: Any
    ) -> modelserver_pb2.UnloadAdapterResponse:
        """Removes the adapter."""
        self.callers.append(identity.current())
        self.adapters.pop(request.name, None)
        return modelserver_pb2.UnloadAdapterResponse()

    def app(self, verifier: tokens.Verifier) -> ServiceApp:
        """For `served`."""
        return ServiceApp(
            name="modelserver",
            telemetry=Telemetry("modelserver"),
            service_names=("genaifactory.modelserver.v1.ModelService",),
            register=lambda server: modelserver_pb2_grpc.add_ModelServiceServicer_to_server(self, server),
            lifespan=_nothing,
            verifier=verifier,
        )


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
