"""The gRPC face of the model server: checks messages, serves, and writes what came out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import identity
from genaifactory_modelserver import validation
from genaifactory_modelserver.engine import FinishReason, Model, Step, TokenLogprob, Usage
from genaifactory_modelserver.serving import Serving

_FINISH_REASONS: Mapping[FinishReason, types_pb2.FinishReason.ValueType] = {
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: types_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: types_pb2.FINISH_REASON_CONTENT_FILTER,
}

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(modelserver_pb2_grpc.ModelServiceServicer):
    """ModelService."""

    def __init__(self, serving: Serving, *, max_embedding_characters: int) -> None:
        self._serving = serving
        self._max_embedding_characters = max_embedding_characters

    async def Generate(
        self, request: modelserver_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[modelserver_pb2.GenerateResponse]:
        """Generates, until the end or until the client goes away."""
        async with aclosing(self._serving.generate(validation.generation(request))) as steps:
            async for step in steps:
                yield _response(step)

    async def Embed(self, request: modelserver_pb2.EmbedRequest, context: Context) -> modelserver_pb2.EmbedResponse:
        """Embeds."""
        texts = validation.texts(request, max_characters=self._max_embedding_characters)
        found = await self._serving.embed(request.model, texts)
        return modelserver_pb2.EmbedResponse(
            embeddings=[modelserver_pb2.Embedding(values=vector.tolist()) for vector in found.vectors],
            usage=_usage(Usage(found.prompt_tokens, 0)),
        )

    async def ListModels(
        self, request: modelserver_pb2.ListModelsRequest, context: Context
    ) -> modelserver_pb2.ListModelsResponse:
        """Lists."""
        return modelserver_pb2.ListModelsResponse(
            models=[_model(model, engine.name) for model, engine in self._serving.models()]
        )

    async def LoadAdapter(
        self, request: modelserver_pb2.LoadAdapterRequest, context: Context
    ) -> modelserver_pb2.LoadAdapterResponse:
        """Refused: no engine of this server takes adapters."""
        identity.current().require("operate")
        self._serving.refuse_adapters()

    async def UnloadAdapter(
        self, request: modelserver_pb2.UnloadAdapterRequest, context: Context
    ) -> modelserver_pb2.UnloadAdapterResponse:
        """Refused: no engine of this server takes adapters."""
        identity.current().require("operate")
        self._serving.refuse_adapters()


def _response(step: Step) -> modelserver_pb2.GenerateResponse:
    response = modelserver_pb2.GenerateResponse(delta=step.delta, choice=step.choice)
    if step.tool_calls:
        response.tool_calls.extend(
            types_pb2.ToolCall(id=c.id, name=c.name, arguments_json=c.arguments_json, index=c.index)
            for c in step.tool_calls
        )
    if step.logprobs:
        response.logprobs.extend(map(_logprob, step.logprobs))
    if step.finish_reason is not None:
        response.finish_reason = _FINISH_REASONS[step.finish_reason]
    if step.usage is not None:
        response.usage.CopyFrom(_usage(step.usage))
    return response


def _logprob(logprob: TokenLogprob) -> types_pb2.TokenLogprob:
    return types_pb2.TokenLogprob(token=logprob.token, logprob=logprob.logprob, top=map(_logprob, logprob.top))


def _usage(usage: Usage) -> types_pb2.TokenUsage:
    return types_pb2.TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
    )


def _model(model: Model, engine: str) -> modelserver_pb2.Model:
    embeds = model.embedding_dimensions > 0
    return modelserver_pb2.Model(
        name=model.name,
        capability=modelserver_pb2.CAPABILITY_EMBED if embeds else modelserver_pb2.CAPABILITY_GENERATE,
        context_tokens=model.context_tokens,
        base_model=model.base_model,
        engine=engine,
        embedding_dimensions=model.embedding_dimensions,
    )
