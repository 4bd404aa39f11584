"""A model of the platform's own model server."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, errors
from genaifactory_common.errors import FactoryError, Reason
from genaifactory_orchestrator.models.backend import (
    ChoiceFinished,
    Delta,
    Embeddings,
    Failure,
    Piece,
    Prompt,
    Remedy,
    ToolCallDelta,
    Usage,
)

logger = logging.getLogger(__name__)


class ModelServerBackend:
    """One model of the model server."""

    continues_exactly = True

    def __init__(self, name: str, served: str, channel: grpc.aio.Channel, *, evaluated: bool = False) -> None:
        """name: of the model in factory.yaml, for the log. served: name at the model server. evaluated: whether the
        request named it, and not factory.yaml."""
        self._name = name
        self._model = served
        self._evaluated = evaluated
        self._stub = modelserver_pb2_grpc.ModelServiceStub(channel)

    async def generate(self, prompt: Prompt, *, prefix: str, timeout_seconds: float) -> AsyncGenerator[Piece, None]:
        """Streams an answer. Raises Failure."""
        messages = list(prompt.messages)
        if prefix:
            messages.append(types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=prefix))
        request = modelserver_pb2.GenerateRequest(
            model=self._model,
            conversation=modelserver_pb2.Conversation(messages=messages, continue_final_message=bool(prefix)),
            documents=prompt.documents,
            sampling=prompt.sampling,
            tools=prompt.tools,
            tool_choice=prompt.tool_choice,
            output_format=prompt.output_format,
            priority=modelserver_pb2.PRIORITY_INTERACTIVE,
        )
        try:
            stream = channels.stream(self._stub.Generate, request, timeout_seconds=timeout_seconds)
            async with aclosing(stream) as responses:
                async for response in responses:
                    if response.delta:
                        yield Delta(response.delta, response.choice, tuple(response.logprobs))
                    for call in response.tool_calls:
                        yield ToolCallDelta(call, response.choice)
                    if response.finish_reason:
                        yield ChoiceFinished(response.finish_reason, response.choice)
                    if response.HasField("usage"):
                        yield _usage(response.usage)
        except FactoryError as error:
            raise self._failure(error) from None

    async def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> Embeddings:
        """One vector for each text. Raises Failure."""
        request = modelserver_pb2.EmbedRequest(model=self._model, texts=texts)
        try:
            response = await channels.unary(self._stub.Embed, request, timeout_seconds=timeout_seconds)
        except FactoryError as error:
            raise self._failure(error) from None
        if len(response.embeddings) != len(texts):
            wrong = errors.UpstreamFailed("The model server did not return one vector for each text.")
            raise Failure(wrong, Remedy.RETRY)
        return Embeddings([embedding.values for embedding in response.embeddings], _usage(response.usage))

    async def close(self) -> None:
        """Does nothing: the app owns the channel."""

    def _failure(self, error: FactoryError) -> Failure:
        match error:
            case errors.ContextTooLong() | errors.TooLarge() | errors.Unimplemented():
                return Failure(error, Remedy.NEXT, unhealthy=False)
            case errors.InvalidArgument():
                if error.field is not None:  # for our callers the conversation's messages are `messages`
                    error.field = error.field.removeprefix("conversation.")
                return Failure(error, Remedy.NONE, unhealthy=False)
            case errors.RateLimited() | errors.Overloaded():
                return Failure(
                    errors.Overloaded(error.message, retry_after_seconds=error.retry_after_seconds),
                    Remedy.RETRY,
                    retry_after_seconds=error.retry_after_seconds,
                    unhealthy=False,  # only busy
                )
            case errors.NotFound() if self._evaluated:
                wrong = errors.InvalidArgument(
                    f"The model server serves no adapter '{self._model}'; load it first, or correct its name.",
                    field="evaluation.adapter",
                )
                return Failure(wrong, Remedy.NONE, unhealthy=False)
            case errors.NotFound() | errors.Unauthenticated() | errors.PermissionDenied() | errors.Conflict():
                self._log_setup_error(error)
                hidden = errors.UpstreamFailed("The model server does not serve a model of this route.")
                return Failure(hidden, Remedy.NEXT, reason=error.reason)
            case errors.ContentBlocked():
                return Failure(error, Remedy.NONE, unhealthy=False)
            case _:
                hidden = errors.UpstreamFailed("The model server cannot answer now.")
                one_replica = error.reason in (Reason.UNAVAILABLE, Reason.CANCELLED)
                return Failure(
                    hidden,
                    Remedy.RETRY,
                    reason=error.reason,
                    retry_after_seconds=error.retry_after_seconds,
                    # gRPC itself cancels a call that reaches a server just after it began to stop.
                    elsewhere=one_replica and not isinstance(error, errors.Unreachable),
                )

    def _log_setup_error(self, error: FactoryError) -> None:
        """Logs an error that an operator has to correct."""
        if isinstance(error, errors.NotFound):
            logger.error(
                "model '%s' is set up wrongly: %s Correct its backend.model in factory.yaml, or add an engine for '%s' "
                "to the model server's engines.",
                self._name,
                error.message,
                self._model,
            )
        else:
            logger.error(
                "model '%s' is set up wrongly: the model server refuses the call (%s): %s",
                self._name,
                error.reason.value,
                error.message,
            )


def _usage(usage: types_pb2.TokenUsage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)
