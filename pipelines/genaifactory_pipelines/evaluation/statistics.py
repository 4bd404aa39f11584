"""How sure a difference between two models is, from their scores on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genaifactory_common.errors import InvalidArgument

_RESAMPLES = 10_000
_SEED = 20_260


@dataclass(frozen=True)
class Interval:
    """A mean, with the bounds between which it is at the confidence."""

    mean: float
    low: float
    high: float
    count: int
    """Items."""


def paired_difference(candidate: Sequence[float], production: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean difference, candidate minus production, with its two-sided bootstrap interval.

    Items are resampled, and both models' scores of an item stay together, since an item that is hard for one is hard
    for the other (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13; percentile interval). The
    same scores give the same interval. Raises InvalidArgument for fewer than two pairs or unequal lengths.
    """
    if len(candidate) != len(production):
        raise InvalidArgument(
            f"{len(candidate)} scores of the candidate and {len(production)} of production are no pairs.",
            field="scores",
        )
    return mean_of([one - other for one, other in zip(candidate, production, strict=True)], confidence=confidence)


def mean_of(scores: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean of scores, with its two-sided bootstrap interval. Raises InvalidArgument for fewer than two."""
    if len(scores) < 2:
        raise InvalidArgument(f"An interval needs at least two items, and there are {len(scores)}.", field="scores")
    values = np.asarray(scores, dtype=np.float64)
    chance = np.random.default_rng(_SEED)
    # In parts: 10,000 resamples of 100,000 items would take 8 GB.
    rows = max(1, 4_000_000 // len(values))
    means = np.concatenate(
        [
            values[chance.integers(0, len(values), (min(rows, _RESAMPLES - start), len(values)))].mean(axis=1)
            for start in range(0, _RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))
