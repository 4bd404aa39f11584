"""Bounds what owners use at once of something limited: all of them together, and each, so that none can use all."""

from __future__ import annotations

import math
from collections import Counter

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
