"""Limits of a tenant, in memory: requests and tokens per minute, reserved before the work and settled after it.

Each limit is a leaky bucket: what was used drains at LIMIT per minute, and what stands in the bucket with the new
request may not exceed LIMIT. So a tenant may use a minute's worth at once, and never more than two within any minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import Counter

from genaifactory_common import specs
from genaifactory_common.errors import RateLimited

LIMITS_HIT = Counter(
    "genaifactory_limits_hit_total", "Requests refused by a tenant's limit a minute.", ["tenant", "limit"]
)

_MINUTE = 60.0


@dataclass(frozen=True)
class State:
    """One limit as the client may know it."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the limit is whole again, if nothing more is used."""


@dataclass(frozen=True)
class Reservation:
    """What a request holds until it is settled."""

    tenant: str
    tokens: int
    requests_state: State
    tokens_state: State


class _Bucket:
    def __init__(self, now: float) -> None:
        self._used = 0.0
        self._at = now

    def used(self, now: float, per_minute: int) -> float:
        drained = (now - self._at) * per_minute / _MINUTE
        self._used = max(0.0, self._used - drained)
        self._at = now
        return self._used

    def add(self, amount: float) -> None:
        # Below zero would be credit for a minute to come.
        self._used = max(0.0, self._used + amount)


class MemoryLimiter:
    """The limits of every tenant of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that never go back."""
        self._clock = clock
        self._buckets: dict[str, tuple[_Bucket, _Bucket]] = {}

    async def reserve(self, tenant: str, limits: specs.Limits, tokens: int) -> Reservation:
        """Takes one request and `tokens` from the tenant's limits, or nothing. Raises RateLimited."""
        now = self._clock()
        buckets = self._buckets.get(tenant)
        if buckets is None:
            buckets = self._buckets[tenant] = (_Bucket(now), _Bucket(now))
        requests, all_tokens = buckets
        self._check(tenant, requests.used(now, limits.requests_per_minute), 1, limits.requests_per_minute, "requests")
        self._check(tenant, all_tokens.used(now, limits.tokens_per_minute), tokens, limits.tokens_per_minute, "tokens")
        requests.add(1)
        all_tokens.add(tokens)
        return Reservation(
            tenant=tenant,
            tokens=tokens,
            requests_state=_state(requests.used(now, limits.requests_per_minute), limits.requests_per_minute),
            tokens_state=_state(all_tokens.used(now, limits.tokens_per_minute), limits.tokens_per_minute),
        )

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replaces the reserved tokens by those really used: fewer give back, more are owed."""
        buckets = self._buckets.get(reservation.tenant)
        if buckets is not None:
            buckets[1].add(tokens - reservation.tokens)

    def state(self, tenant: str, limits: specs.Limits) -> tuple[State, State]:
        """Requests and tokens of a tenant as they stand."""
        now = self._clock()
        requests, tokens = self._buckets.get(tenant) or (_Bucket(now), _Bucket(now))
        return (
            _state(requests.used(now, limits.requests_per_minute), limits.requests_per_minute),
            _state(tokens.used(now, limits.tokens_per_minute), limits.tokens_per_minute),
        )

    def keep_only(self, tenants: Iterable[str]) -> None:
        """Forgets tenants that the configuration no longer has."""
        kept = set(tenants)
        self._buckets = {tenant: buckets for tenant, buckets in self._buckets.items() if tenant in kept}

    @staticmethod
    def _check(tenant: str, used: float, wanted: int, per_minute: int, unit: Literal["requests", "tokens"]) -> None:
        if used + wanted <= per_minute:
            return
        LIMITS_HIT.labels(tenant, unit).inc()
        if wanted > per_minute:
            raise RateLimited(
                f"The request needs up to {wanted} {unit}, more than the {per_minute} {unit} a minute of this tenant: "
                "send a shorter prompt or a smaller max_tokens."
            )
        seconds = (used + wanted - per_minute) * _MINUTE / per_minute
        raise RateLimited(
            f"The limit of {per_minute} {unit} a minute is used up; try again in {seconds:.1f} s.",
            retry_after_seconds=seconds,
        )


def _state(used: float, per_minute: int) -> State:
    return State(
        limit=per_minute,
        remaining=max(0, int(per_minute - used + 1e-6)),
        reset_seconds=used * _MINUTE / per_minute,
    )
