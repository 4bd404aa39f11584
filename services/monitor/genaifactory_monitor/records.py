"""What the monitor keeps: interactions, feedback and usage, as values that know neither wire nor database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
"""An object of JSON-able values, named as in the .proto files; see `message_dicts`."""

OutcomeName = Literal["answered", "blocked", "failed", "cancelled"]
RatingName = Literal["", "up", "down"]
GuardrailName = Literal["mask", "block"]


@dataclass(frozen=True)
class Interaction:
    """One answered, failed or cancelled request. The fields are the columns of `schema.interactions`."""

    tenant: str
    request_id: str
    start_time_us: int
    """UTC, microseconds since 1970."""
    principal: str
    key_id: str
    end_user: str
    task: str
    route: str
    model: str
    prompt_version: str
    index_version: str
    conversation_id: str
    trace_id: str
    outcome: OutcomeName
    error_reason: str
    error_message: str
    cached: bool
    refused: bool
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    cost_micros: int
    """Millionths of `currency`."""
    currency: str
    time_to_first_token_us: int
    """0: there was no text."""
    duration_us: int
    size_bytes: int
    """As sent; bounds pages and exports."""
    attempts: Sequence[Json]
    passages: Sequence[Json]
    citations: Sequence[Json]
    verdicts: Sequence[Json]
    input: Sequence[Json]
    """Messages."""
    output: str


@dataclass(frozen=True)
class Feedback:
    """A judgement on one interaction. The fields are the columns of `schema.feedback`."""

    tenant: str
    feedback_id: str
    request_id: str
    time_us: int
    """UTC, microseconds since 1970."""
    principal: str
    key_id: str
    rating: RatingName
    correction: str
    comment: str
    ground_truth: Json | None


class Position(NamedTuple):
    """Where an interaction stands in a tenant's order of time; the key of paging."""

    start_time_us: int
    request_id: str


@dataclass(frozen=True)
class Filter:
    """Which interactions; None and empty mean any."""

    tenant: str
    start_time_us: int | None = None
    """Inclusive."""
    end_time_us: int | None = None
    """Exclusive."""
    route: str = ""
    model: str = ""
    request_ids: tuple[str, ...] = ()
    outcome: OutcomeName | None = None
    guardrail_action: GuardrailName | None = None
    """At least so strong."""
    key_id: str = ""
    ended_since_us: int | None = None
    """Inclusive."""


class UsageKey(NamedTuple):
    """What usage is added up by."""

    day: str
    """UTC, YYYY-MM-DD."""
    tenant: str
    key_id: str
    model: str
    currency: str


@dataclass(frozen=True)
class Usage:
    """Usage of one key of the sum."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cost_micros: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.errors + other.errors,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.cost_micros + other.cost_micros,
        )
