"""Limits of a tenant, by kind: a request's amounts are reserved before the work and settled after it.

`KINDS` lists them: a further kind needs an entry there, a field of `specs.Limits`, and an amount where it is used.
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
"""The counted unit, and the limit's name in messages, headers and metrics."""
Amounts = Mapping[Kind, int]
"""Amounts that a request needs or has used; a missing kind is 0."""


@dataclass(frozen=True)
class Rule:
    """The limit of one kind."""

    limit: Callable[[specs.Limits], int]
    """The amount that a tenant may use in a window."""
    window_seconds: float = 60.0
    window: str = "a minute"
    """The window in messages."""
    advice: str = "ask for less"
    """For a client that needs more at once than the whole limit."""


KINDS: Mapping[Kind, Rule] = {
    "requests": Rule(lambda limits: limits.requests_per_minute),
    "tokens": Rule(lambda limits: limits.tokens_per_minute, advice="send a shorter prompt or a smaller max_tokens"),
}


class State(NamedTuple):
    """The state of one limit, for the client."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the whole limit is available again, if nothing more is used."""


States = Mapping[Kind, State]


@dataclass(frozen=True)
class Reservation:
    """The reserved amounts of a request, until they are settled."""

    tenant: str
    charges: Sequence[Charge]
    """One for each kind, in the order of KINDS."""
    states: States
    """After the reservation."""


class Limiter:
    """The limits of every tenant."""

    def __init__(self, store: QuotaStore) -> None:
        self._store = store

    async def reserve(
        self, tenant: str, limits: specs.Limits, amounts: Amounts, earlier: Reservation | None = None
    ) -> Reservation:
        """Reserves all amounts within the tenant's limits, or none. Raises RateLimited.

        earlier: of the same request; what is returned holds its amounts too, and replaces it.
        """
        charges = _charges(limits, amounts)
        levels = await self._store.reserve(tenant, charges)
        if levels.refused is not None:
            kind, charge = tuple(KINDS)[levels.refused], charges[levels.refused]
            LIMITS_HIT.labels(tenant, kind).inc()
            raise _refusal(kind, charge, levels.before[levels.refused])
        states = _states(charges, levels, reserved=True)
        if earlier is not None:
            charges = [
                charge._replace(amount=charge.amount + before.amount)
                for charge, before in zip(charges, earlier.charges, strict=True)
            ]
        return Reservation(tenant, charges, states)

    async def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replaces the reserved amounts by the used ones, which may be lower or higher."""
        differences = [
            charge._replace(amount=used.get(kind, 0) - charge.amount)
            for kind, charge in zip(KINDS, reservation.charges, strict=True)
            if used.get(kind, 0) != charge.amount
        ]
        await self._store.settle(reservation.tenant, differences)

    async def states(self, tenant: str, limits: specs.Limits) -> States:
        """The current state of a tenant's limits."""
        charges = _charges(limits, {})
        return _states(charges, await self._store.reserve(tenant, charges), reserved=False)

    def keep_only(self, tenants: Iterable[str]) -> None:
        """Deletes the state of all other tenants."""
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
