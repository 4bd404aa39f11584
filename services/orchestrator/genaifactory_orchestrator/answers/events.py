"""The events of an answer, in this order: opened, route, passages, text and tool calls, verdicts, done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from genaifactory.types.v1 import types_pb2
from genaifactory_orchestrator.answers.retrieval import RetrievedPassages
from genaifactory_orchestrator.models.backend import Delta, ToolCallDelta, Usage
from genaifactory_orchestrator.models.pricing import Cost


@dataclass(frozen=True)
class Opened:
    """Facts that are known before the first token."""

    masked: Mapping[str, int]
    """Number of masks in the messages by entity type."""
    cache: types_pb2.CacheUse.ValueType


@dataclass(frozen=True)
class RouteChosen:
    """The route, the model, the prompt and the arm of the answer."""

    route: str
    model: str
    prompt_version: str
    split: str
    """Of the route; empty without one."""
    arm: str


@dataclass(frozen=True)
class Done:
    """The end of the answer."""

    finish_reasons: tuple[types_pb2.FinishReason.ValueType, ...]
    """One for each choice."""
    model: str = ""
    citations: tuple[types_pb2.Citation, ...] = ()
    """Of the first choice, with offsets in its released text."""
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)
    cached: bool = False
    refused: bool = False
    passages: tuple[types_pb2.Passage, ...] = ()
    """Those that were found; only of an evaluation."""
    reading: types_pb2.Reading | None = None
    """Set when documents were still being read."""


Event = Opened | RouteChosen | RetrievedPassages | Delta | ToolCallDelta | types_pb2.Verdict | Done

Emit = Callable[[Event], Awaitable[None]]
"""Sends an event to the client; waits while the client is behind."""
