"""The model client: one answer from a chain of models, whatever fails on the way.

    client = ModelClient(source, modelserver_channel, telemetry)
    async with client:
        attempts: list[Attempt] = []
        async with aclosing(client.generate(route.models, prompt, timeout_seconds=60, attempts=attempts)) as events:
            async for event in events: ...
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Self

import grpc.aio

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.backends import Delta, Embeddings, Prompt, ToolCallDelta, Usage
from genaifactory_orchestrator.pricing import Cost


@dataclass(frozen=True)
class Started:
    """A model begins to answer; comes again when a fallback goes on with the answer."""

    model: str


@dataclass(frozen=True)
class Finished:
    """The answer is complete; the last event."""

    finish_reasons: tuple[types_pb2.FinishReason, ...]
    """One for each choice."""
    usage: Usage
    """Of all tries together."""
    model: str
    """That finished the answer."""


Event = Started | Delta | ToolCallDelta | Finished


@dataclass(frozen=True)
class Attempt:
    """One try of one model."""

    model: str
    error_reason: str
    """Reason code of its failure; empty when it worked."""
    duration_seconds: float
    first_token_seconds: float | None = None
    """From the start of this try; None when none came."""
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)


class ModelClient:
    """Calls the models of factory.yaml; use as an async context manager."""

    def __init__(self, source: specs.Source, modelserver: grpc.aio.Channel, telemetry: Telemetry) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def generate(
        self,
        chain: Sequence[str],
        prompt: Prompt,
        *,
        timeout_seconds: float,
        attempts: list[Attempt] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Streams one answer from the first model of `chain` that works; raises FactoryError.

        Closing the generator cancels the call at the backend. Each try is appended to `attempts` when it ends,
        also when it failed or was cancelled; `pricing.total(a.cost for a in attempts)` is what was spent.
        """
        ...

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_seconds: float, attempts: list[Attempt] | None = None
    ) -> Embeddings:
        """One vector for each text; raises FactoryError."""
        ...
