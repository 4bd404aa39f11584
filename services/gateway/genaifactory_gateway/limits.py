"""Limits of a tenant, by kind: what a request needs is reserved before the work and settled after it.

`KINDS` is the whole table: a further kind is an entry there, a field of `specs.Limits`, and an amount where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prometheus_client import Counter

from genaifactory_common import specs
from genaifactory_common.errors import RateLimited
from genaifactory_gateway.quotas import Charge, Levels, QuotaStore

LIMITS_HIT = Counter(
    "genaifactory_limits_hit_total", "Requests refused by a tenant's limit a minute.", ["tenant", "limit"]
)

Kind = Literal["requests", "tokens"]
"""Names a limit in messages, headers and metrics, and says what is counted."""
Amounts = Mapping[Kind, int]
"""What a request needs or has used; a kind that is missing: nothing."""


@dataclass(frozen=True)
class Rule:
    """How one kind is limited."""

    limit: Callable[[specs.Limits], int]
    """What a tenant may use in a window."""
    window_seconds: float = 60.0
    window: str = "a minute"
    """In words."""
    advice: str = "ask for less"
    """To a client that wants more at once than the whole limit."""


KINDS: Mapping[Kind, Rule] = {
    "requests": Rule(lambda limits: limits.requests_per_minute),
    "tokens": Rule(lambda limits: limits.tokens_per_minute, advice="send a shorter prompt or a smaller max_tokens"),
}


class State(NamedTuple):
    """One limit as the client may know it."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the limit is whole again, if nothing more is used."""


States = Mapping[Kind, State]


@dataclass(frozen=True)
class Reservation:
    """What a request holds until it is settled."""

    tenant: str
    charges: Sequence[Charge]
    """One for each kind, in the order of KINDS."""
    states: States
    """With the reservation."""


class Limiter:
    """The limits of every tenant."""

    def __init__(self, store: QuotaStore) -> None:
        self._store = store

    async def reserve(self, tenant: str, limits: specs.Limits, amounts: Amounts) -> Reservation:
        """Takes the amounts from the tenant's limits, or nothing. Raises RateLimited."""
        charges = _charges(limits, amounts)
        levels = await self._store.reserve(tenant, charges)
        if levels.refused is not None:
            kind, charge = tuple(KINDS)[levels.refused], charges[levels.refused]
            LIMITS_HIT.labels(tenant, kind).inc()
            raise _refusal(kind, charge, levels.before[levels.refused])
        return Reservation(tenant, charges, _states(charges, levels, reserved=True))

    async def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replaces the reserved amounts by those really used: fewer give back, more are owed."""
        differences = [
            charge._replace(amount=used.get(kind, 0) - charge.amount)
            for kind, charge in zip(KINDS, reservation.charges, strict=True)
            if used.get(kind, 0) != charge.amount
        ]
        await self._store.settle(reservation.tenant, differences)

    async def states(self, tenant: str, limits: specs.Limits) -> States:
        """The limits of a tenant as they stand."""
        charges = _charges(limits, {})
        return _states(charges, await self._store.reserve(tenant, charges), reserved=False)

    def keep_only(self, tenants: Iterable[str]) -> None:
        """Forgets tenants that the configuration no longer has."""
        self._store.keep_only(tenants)


def _charges(limits: specs.Limits, amounts: Amounts) -> list[Charge]:
    return [Charge(kind, amounts.get(kind, 0), rule.limit(limits), rule.window_seconds) for kind, rule in KINDS.items()]


def _states(charges: Sequence[Charge], levels: Levels, *, reserved: bool) -> States:
    states: dict[Kind, State] = {}
    for kind, charge, before in zip(KINDS, charges, levels.before, strict=True):
        used = before + charge.amount if reserved else before
        states[kind] = State(
            limit=charge.limit,
            remaining=max(0, int(charge.limit - used + 1e-6)),
            reset_seconds=used * charge.window_seconds / charge.limit,
        )
    return states


def _refusal(kind: Kind, charge: Charge, level: float) -> RateLimited:
    rule = KINDS[kind]
    if charge.amount > charge.limit:
        return RateLimited(
            f"The request needs up to {charge.amount} {kind}, more than the {charge.limit} {kind} {rule.window} of "
            f"this tenant: {rule.advice}."
        )
    seconds = (level + charge.amount - charge.limit) * charge.window_seconds / charge.limit
    return RateLimited(
        f"The limit of {charge.limit} {kind} {rule.window} is used up; try again in {seconds:.1f} s.",
        retry_after_seconds=seconds,
    )
