"""Permutation tests: how often windows that were drawn by lot from both together differ as much as the two do.

Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005. The test is exact whatever the distribution of
the values, as long as those of both windows are independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

COUNT = 4_999
"""Permutations. The least p-value is 1 in COUNT + 1, which must stay below the false discovery rate even after it is
multiplied by the number of signals."""

_SEED = 20_260
_BLOCK_VALUES = 25_000_000


def shuffled(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Columns of the values in another order each, in blocks of 100 MB at most; the first column is as given."""
    chance = np.random.default_rng(_SEED)
    columns = max(1, _BLOCK_VALUES // len(values))
    for start in range(0, COUNT + 1, columns):
        block = np.repeat(values[:, None], min(columns, COUNT + 1 - start), axis=1)
        first = 1 if start == 0 else 0
        block[:, first:] = chance.permuted(block[:, first:], axis=0)
        yield block


def labels(reference: int, current: int) -> Iterator[NDArray[np.float32]]:
    """As `shuffled`: 0 for each row of the reference, 1 for each of the current window, by its number of rows."""
    return shuffled(np.repeat(np.array([0, 1], np.float32), [reference, current]))


def p_value(statistics: NDArray[np.floating]) -> float:
    """The share of statistics that are at least the first, which is the observed one and counts itself.

    Differences in the last digits are those of rounding.
    """
    return float(np.mean(statistics >= statistics[0] - 1e-6 * abs(statistics[0])))
