"""The interface of the model client's backends: the prompt, the pieces of an answer, and failures."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import FactoryError, Reason


@dataclass(frozen=True)
class Prompt:
    """A model's input. The messages must not be changed.

    documents: for models whose template supports them (the extractive engine). Other models get the passages only
    through the messages.
    """

    messages: tuple[types_pb2.Message, ...]
    documents: tuple[types_pb2.Passage, ...] = ()
    sampling: types_pb2.Sampling = field(default_factory=types_pb2.Sampling)
    tools: tuple[types_pb2.Tool, ...] = ()
    tool_choice: types_pb2.ToolChoice | None = None
    output_format: types_pb2.OutputFormat | None = None

    @property
    def choices(self) -> int:
        """Number of answers asked for."""
        return self.sampling.n or 1


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more attempts; `estimated` when a backend did not count them itself."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Of the prompt tokens; served by a prefix cache."""
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.estimated or other.estimated,
        )

    def to_proto(self) -> types_pb2.TokenUsage:
        """As a protobuf message."""
        return types_pb2.TokenUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice."""

    text: str
    choice: int = 0
    logprobs: tuple[types_pb2.TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A new piece of a tool call; pieces with one `tool_call.index` belong together."""

    tool_call: types_pb2.ToolCall
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """A choice has ended."""

    reason: types_pb2.FinishReason.ValueType
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Thinking:
    """Output that the client does not get, such as a reasoning trace."""


Piece = Delta | ToolCallDelta | ChoiceFinished | Thinking | Usage
"""The elements of a backend's stream. Usage may come several times; the last one counts."""


@dataclass(frozen=True)
class Embeddings:
    """One vector for each text, in their order."""

    vectors: Sequence[Sequence[float]]
    usage: Usage


class Remedy(Enum):
    """What may help after a failure."""

    RETRY = "retry"
    """A retry at the same backend."""
    NEXT = "next"
    """Another backend: this one is configured wrongly, or does not support the request."""
    NONE = "none"
    """Nothing: the request itself is invalid."""


class Failure(Exception):
    """A failed attempt.

    error: the caller's error if no other attempt succeeds. Never a secret, a user's text or an upstream's internals.
    remedy: what may help.
    reason: for the record; `error.reason` unless it would mislead the caller (an upstream's 401).
    retry_after_seconds: the wait that the backend asks for.
    unhealthy: whether the backend is at fault, so that it counts for its circuit.
    elsewhere: whether only one replica may be affected, which stops or has gone: another one may answer at once.
    """

    def __init__(
        self,
        error: FactoryError,
        remedy: Remedy,
        *,
        reason: Reason | None = None,
        retry_after_seconds: float | None = None,
        unhealthy: bool = True,
        elsewhere: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.remedy = remedy
        self.reason = reason or error.reason
        self.retry_after_seconds = retry_after_seconds
        self.unhealthy = unhealthy
        self.elsewhere = elsewhere


class Backend(Protocol):
    """Access to a model. Every method raises only Failure, and may be cancelled at any await."""

    @property
    def continues_exactly(self) -> bool:
        """Whether `prefix` is continued token by token; else the model is asked to, and may repeat some of it."""
        ...

    def generate(self, prompt: Prompt, *, prefix: str, timeout_seconds: float) -> AsyncGenerator[Piece, None]:
        """Streams an answer. prefix: the beginning of the answer, to be continued; empty for a new one."""
        ...

    async def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> Embeddings:
        """One vector for each text."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...
