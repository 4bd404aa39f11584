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
from genaifactory_modelserver.engines.protocol import FinishReason, Step, TokenLogprob, Usage
from genaifactory_modelserver.serving import Listed, Serving, State

_FINISH_REASONS: Mapping[FinishReason, types_pb2.FinishReason.ValueType] = {
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: types_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: types_pb2.FINISH_REASON_CONTENT_FILTER,
}

_STATES: Mapping[State, modelserver_pb2.ModelState.ValueType] = {
    State.READY: modelserver_pb2.MODEL_STATE_READY,
    State.LOADING: modelserver_pb2.MODEL_STATE_LOADING,
    State.SLEEPING: modelserver_pb2.MODEL_STATE_SLEEPING,
    State.FAILED: modelserver_pb2.MODEL_STATE_FAILED,
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
        generation = validation.generation(request, tenant=identity.current().tenant)
        async with aclosing(self._serving.generate(generation)) as steps:
            async for step in steps:
                yield _response(step)

    async def Embed(self, request: modelserver_pb2.EmbedRequest, context: Context) -> modelserver_pb2.EmbedResponse:
        """Embeds."""
        texts = validation.texts(request, max_characters=self._max_embedding_characters)
        found = await self._serving.embed(request.model, texts, tenant=identity.current().tenant)
        return modelserver_pb2.EmbedResponse(
            embeddings=[modelserver_pb2.Embedding(values=vector.tolist()) for vector in found.vectors],
            usage=_usage(Usage(found.prompt_tokens, 0)),
        )

    async def ListModels(
        self, request: modelserver_pb2.ListModelsRequest, context: Context
    ) -> modelserver_pb2.ListModelsResponse:
        """Lists."""
        return modelserver_pb2.ListModelsResponse(models=map(_model, self._serving.models()))

    async def LoadAdapter(
        self, request: modelserver_pb2.LoadAdapterRequest, context: Context
    ) -> modelserver_pb2.LoadAdapterResponse:
        """Loads an adapter."""
        adapter = validation.adapter(request)
        loaded = await self._serving.load_adapter(adapter, base_model=request.base_model)
        return modelserver_pb2.LoadAdapterResponse(model=_model(loaded))

    async def UnloadAdapter(
        self, request: modelserver_pb2.UnloadAdapterRequest, context: Context
    ) -> modelserver_pb2.UnloadAdapterResponse:
        """Unloads an adapter."""
        await self._serving.unload_adapter(validation.required("name", request.name))
        return modelserver_pb2.UnloadAdapterResponse()

    async def Sleep(self, request: modelserver_pb2.SleepRequest, context: Context) -> modelserver_pb2.SleepResponse:
        """Puts a model to sleep."""
        await self._serving.sleep(validation.required("model", request.model))
        return modelserver_pb2.SleepResponse()

    async def Wake(self, request: modelserver_pb2.WakeRequest, context: Context) -> modelserver_pb2.WakeResponse:
        """Wakes a model."""
        await self._serving.wake(validation.required("model", request.model))
        return modelserver_pb2.WakeResponse()


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


def _model(listed: Listed) -> modelserver_pb2.Model:
    model = listed.model
    embeds = model.embedding_dimensions > 0
    return modelserver_pb2.Model(
        name=model.name,
        capability=modelserver_pb2.CAPABILITY_EMBED if embeds else modelserver_pb2.CAPABILITY_GENERATE,
        context_tokens=model.context_tokens,
        base_model=model.base_model,
        engine=listed.engine,
        embedding_dimensions=model.embedding_dimensions,
        state=_STATES[listed.state],
        state_message=listed.message or model.note,
    )
