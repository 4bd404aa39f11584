"""Waiting times before retries."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter: a random part of an interval that doubles with each failure in a row.

    Full jitter spreads clients that failed together over the whole interval
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    first_seconds: float
    """Longest wait after the first failure."""
    longest_seconds: float
    """Longest wait after any number of failures."""

    def seconds(self, failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """The wait after the n-th failure in a row, from 1. uniform: draws between two bounds."""
        # 32 doublings exceed any longest wait; more would overflow in the end.
        return uniform(0.0, min(self.longest_seconds, self.first_seconds * 2 ** min(failures - 1, 32)))
