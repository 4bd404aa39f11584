"""Bounds what owners use at once of something limited: all of them together, and each, so that none can use all."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator

# The rest is left to the other owners.
_MOST_OF_ONE = 0.75


class Shares:
    """A limited amount in use by owners: tenants, or addresses."""

    def __init__(self, whole: int) -> None:
        """whole: in use at once by all owners together; by one owner three quarters of it."""
        self.whole = whole
        self.of_one = math.ceil(whole * _MOST_OF_ONE)
        self.used = 0
        """By all owners."""
        self._used: Counter[str] = Counter()

    def take(self, owner: str, amount: int = 1) -> bool:
        """Adds to what the owner uses; False, and nothing is added, when one of the bounds would be exceeded."""
        if self.used + amount > self.whole or self._used[owner] + amount > self.of_one:
            return False
        self.used += amount
        self._used[owner] += amount
        return True

    def give_back(self, owner: str, amount: int = 1) -> None:
        """Subtracts what was added by `take`."""
        self.used -= amount
        self._used[owner] -= amount
        if not self._used[owner]:
            del self._used[owner]


class Waiting:
    """Places of `Shares` for which owners wait, in the order in which they came."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: dict[asyncio.Future[None], str] = {}

    @contextlib.asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator[None]:
        """One place, inside the block."""
        if not self._shares.take(owner):  # then none who waits could have one either
            await self._given(owner)
        try:
            yield
        finally:
            self._give_back(owner)

    async def _given(self, owner: str) -> None:
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[given] = owner
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():  # it was given in the same turn of the loop
                self._give_back(owner)
            raise
        finally:
            self._waiting.pop(given, None)

    def _give_back(self, owner: str) -> None:
        self._shares.give_back(owner)
        for given, waiting in list(self._waiting.items()):
            if not given.done() and self._shares.take(waiting):
                given.set_result(None)
            if self._shares.used == self._shares.whole:
                return
