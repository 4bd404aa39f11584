"""Counts the use of limits in leaky buckets, by owner and name.

A bucket drains evenly, a full one within its window, and its level with a new charge must not exceed the limit. So an
owner may use a window's limit at once, and never more than twice that within any window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Charge(NamedTuple):
    """An amount for one bucket, with the bucket's limit in the configuration in force."""

    bucket: str
    amount: int
    limit: int
    window_seconds: float
    """Time in which a full bucket drains."""


class Levels(NamedTuple):
    """The levels of a call's buckets."""

    before: Sequence[float]
    """One for each charge, in their order."""
    refused: int | None
    """The first charge above its limit; then none was made."""


class QuotaStore(Protocol):
    """Buckets of all owners. A call makes all of its charges atomically; a store outside the process needs one round
    trip for it, and keeps the buckets of an owner together."""

    async def reserve(self, owner: str, charges: Sequence[Charge]) -> Levels:
        """Makes all charges, or none if one exceeds its limit. Charges of 0 read the levels. Raises Unavailable."""
        ...

    async def settle(self, owner: str, charges: Sequence[Charge]) -> None:
        """Makes all charges, also above the limit; a negative amount is a refund. Raises Unavailable."""
        ...

    def keep_only(self, owners: Iterable[str]) -> None:
        """Deletes the buckets of all other owners."""
        ...


class MemoryQuotas:
    """Buckets in the memory of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic, in seconds."""
        self._clock = clock
        self._owners: dict[str, dict[str, _Bucket]] = {}

    async def reserve(self, owner: str, charges: Sequence[Charge]) -> Levels:
        """See QuotaStore."""
        now = self._clock()
        buckets = self._owners.setdefault(owner, {})
        before = [_drained(buckets, charge, now) for charge in charges]
        for i, charge in enumerate(charges):
            if before[i] + charge.amount > charge.limit:
                return Levels(before, i)
        for charge in charges:
            buckets[charge.bucket].level += charge.amount
        return Levels(before, None)

    async def settle(self, owner: str, charges: Sequence[Charge]) -> None:
        """See QuotaStore."""
        buckets = self._owners.get(owner, {})  # empty for an owner that was deleted meanwhile
        for charge in charges:
            if (bucket := buckets.get(charge.bucket)) is not None:
                # Below zero would be credit for the next window.
                bucket.level = max(0.0, bucket.level + charge.amount)

    def keep_only(self, owners: Iterable[str]) -> None:
        """See QuotaStore."""
        kept = set(owners)
        self._owners = {owner: buckets for owner, buckets in self._owners.items() if owner in kept}


class Unlimited:
    """A store without limits: buckets stay empty."""

    async def reserve(self, owner: str, charges: Sequence[Charge]) -> Levels:
        """See QuotaStore."""
        return Levels([0.0] * len(charges), None)

    async def settle(self, owner: str, charges: Sequence[Charge]) -> None:
        """See QuotaStore."""

    def keep_only(self, owners: Iterable[str]) -> None:
        """See QuotaStore."""


@dataclass
class _Bucket:
    level: float
    at: float
    """Time of this level, by the clock."""


def _drained(buckets: dict[str, _Bucket], charge: Charge, now: float) -> float:
    bucket = buckets.get(charge.bucket)
    if bucket is None:
        bucket = buckets[charge.bucket] = _Bucket(0.0, now)
    bucket.level = max(0.0, bucket.level - (now - bucket.at) * charge.limit / charge.window_seconds)
    bucket.at = now
    return bucket.level
