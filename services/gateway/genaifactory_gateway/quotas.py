"""Where the use of limits is counted: buckets that drain, by owner and name.

A bucket is a leaky one: what was used drains evenly, a full bucket in its window, and what stands in it with the new
charge may not exceed the limit. So an owner may use a window's worth at once, never more than two within any window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Charge(NamedTuple):
    """An amount for one bucket, with what the bucket holds as long as this configuration is in force."""

    bucket: str
    amount: int
    limit: int
    window_seconds: float
    """In which a full bucket drains."""


class Levels(NamedTuple):
    """What stood in the buckets of a call."""

    before: Sequence[float]
    """One for each charge, in their order."""
    refused: int | None
    """The first charge that did not fit; then none was made."""


class QuotaStore(Protocol):
    """Buckets of all owners. A call is one step for all of its charges, whoever else charges at the same time; a store
    outside the process makes one round trip of it, and keeps the buckets of an owner together."""

    async def reserve(self, owner: str, charges: Sequence[Charge]) -> Levels:
        """Makes all charges, or none where one does not fit. Charges of 0 read the levels. Raises Unavailable."""
        ...

    async def settle(self, owner: str, charges: Sequence[Charge]) -> None:
        """Makes all charges, whether they fit or not; an amount below 0 gives back. Raises Unavailable."""
        ...

    def keep_only(self, owners: Iterable[str]) -> None:
        """Forgets the buckets of all others."""
        ...


class MemoryQuotas:
    """The buckets of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that never go back."""
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
        buckets = self._owners.get(owner, {})  # an owner that was forgotten meanwhile owes nothing
        for charge in charges:
            if (bucket := buckets.get(charge.bucket)) is not None:
                # Below zero would be credit for a window to come.
                bucket.level = max(0.0, bucket.level + charge.amount)

    def keep_only(self, owners: Iterable[str]) -> None:
        """See QuotaStore."""
        kept = set(owners)
        self._owners = {owner: buckets for owner, buckets in self._owners.items() if owner in kept}


class Unlimited:
    """Empty buckets, whatever is charged."""

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
    """When it was at this level, by the clock."""


def _drained(buckets: dict[str, _Bucket], charge: Charge, now: float) -> float:
    bucket = buckets.get(charge.bucket)
    if bucket is None:
        bucket = buckets[charge.bucket] = _Bucket(0.0, now)
    bucket.level = max(0.0, bucket.level - (now - bucket.at) * charge.limit / charge.window_seconds)
    bucket.at = now
    return bucket.level
