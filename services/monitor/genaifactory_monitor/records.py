"""Feedback, usage and filters of interactions, as values independent of protobuf and the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
"""An object of JSON-able values, named as in the .proto files; see `message_dicts`."""

OutcomeName = Literal["answered", "blocked", "failed", "cancelled"]
RatingName = Literal["", "up", "down"]
GuardrailName = Literal["mask", "block"]


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
    """A place in a tenant's order of time; the key of paging."""

    time_us: int
    """When the interaction began, or the window of a report ended."""
    id: str
    """Of the interaction or report."""


@dataclass(frozen=True)
class Filter:
    """Which interactions; None and empty match any."""

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
    """Matches this action and stronger ones."""
    key_id: str = ""
    ended_since_us: int | None = None
    """Inclusive."""


@dataclass(frozen=True)
class DriftFilter:
    """Which reports of drift checks, by the end of the window that they judge; None matches any."""

    tenant: str
    route: str | None = None
    """Empty: of all routes together."""
    ended_since_us: int | None = None
    """Inclusive."""
    ended_before_us: int | None = None
    """Exclusive."""


@dataclass(frozen=True)
class ReleaseFilter:
    """Which releases of a route, in which whole hours."""

    tenant: str | None
    """None: of every tenant."""
    route: str
    split: str
    """Empty: any, and none."""
    start_us: int
    """Inclusive."""
    end_us: int
    """Exclusive."""


class UsageKey(NamedTuple):
    """The key of a sum of usage."""

    day: str
    """UTC, YYYY-MM-DD."""
    tenant: str
    key_id: str
    model: str
    currency: str


@dataclass(frozen=True)
class Usage:
    """The sums of one key."""

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
