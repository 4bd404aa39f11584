"""How sure a difference between two models is, from their scores on the same items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genaifactory_common.errors import InvalidArgument

_RESAMPLES = 10_000
_SEED = 20_260


@dataclass(frozen=True)
class Interval:
    """A mean or quantile, with the bounds between which it is at the confidence."""

    mean: float
    low: float
    high: float
    count: int
    """Items."""


def paired_difference(
    candidate: Sequence[float], production: Sequence[float], *, confidence: float = 0.95, quantile: float | None = None
) -> Interval:
    """The difference of the means, candidate minus production, with its two-sided bootstrap interval.

    quantile: of this quantile instead of the mean. Items are resampled, and both models' scores of an item stay
    together, since an item that is hard for one is hard for the other (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, ch. 13; percentile interval). The same scores give the same interval. Raises InvalidArgument for
    fewer than two pairs or unequal lengths.
    """
    if len(candidate) != len(production):
        raise InvalidArgument(
            f"{len(candidate)} scores of the candidate and {len(production)} of production are no pairs.",
            field="scores",
        )
    pair = np.array([candidate, production], dtype=np.float64)
    if quantile is None:
        return mean_of(list(pair[0] - pair[1]), confidence=confidence)
    return _bootstrap(pair, lambda some: np.subtract(*np.quantile(some, quantile, axis=-1)), confidence)


def mean_of(scores: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean of scores, with its two-sided bootstrap interval. Raises InvalidArgument for fewer than two."""
    return _bootstrap(np.asarray(scores, dtype=np.float64), lambda some: some.mean(axis=-1), confidence)


def _bootstrap(
    values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], confidence: float
) -> Interval:
    """values, and what the statistic reduces: items along the last axis."""
    count = values.shape[-1]
    if count < 2:
        raise InvalidArgument(f"An interval needs at least two items, and there are {count}.", field="scores")
    chance = np.random.default_rng(_SEED)
    # In parts: 10,000 resamples of 100,000 items would take 8 GB.
    rows = max(1, 4_000_000 // count)
    found = np.concatenate(
        [
            statistic(values[..., chance.integers(0, count, (min(rows, _RESAMPLES - start), count))])
            for start in range(0, _RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(values)), float(low), float(high), count)


def kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Cohen's kappa of two raters' labels of the same things: 1 is full agreement, 0 what chance would give.

    Cohen, "A Coefficient of Agreement for Nominal Scales", 1960. Raises InvalidArgument for none, or unequal lengths.
    """
    if not one or len(one) != len(other):
        raise InvalidArgument(f"{len(one)} and {len(other)} labels are no pairs.", field="labels")
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    counts = Counter(one), Counter(other)
    by_chance = sum(counts[0][label] * counts[1][label] for label in counts[0]) / len(one) ** 2
    return 1.0 if by_chance == 1 else (observed - by_chance) / (1 - by_chance)
