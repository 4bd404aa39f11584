"""Whether users approve of answers less than they did, and since when.

Page, "Continuous inspection schemes", Biometrika 1954: the cumulative sum of what the ratings fall short of their mean
in the reference.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genaifactory_pipelines.drift import comparisons, effects, permutations
from genaifactory_pipelines.drift.protocol import Evidence, Window, require_enough

_ALLOWANCE = 0.05
"""A fall of the share by this much is not summed up: half of the one that is to be found."""
_CERTAIN = 0.99


class Rating:
    """The largest sum in the current window, in the order in which questions were asked, however late they were rated.

    Permutations of both windows' ratings account for a mean of the reference that is itself measured on a few.
    """

    name = "rating"
    group: Literal["quality"] = "quality"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        rated = [[each for each in it.interactions if each.approved is not None] for it in (reference, current)]
        require_enough("rated answers", *rated)
        known = len(rated[0])
        values = np.array([each.approved for part in rated for each in part], np.float32)
        blocks = [_sums(block, known) for block in permutations.shuffled(values)]
        found = np.concatenate([block.max(axis=0) for block in blocks])
        sums = blocks[0][:, 0]
        begun = _begin(sums)
        before, now = float(values[:known].mean()), float(values[known + begun :].mean())
        certain = np.flatnonzero(sums > np.quantile(found[1:], _CERTAIN))
        return Evidence(
            float(found[0]),
            permutations.p_value(found),
            comparisons.cohens_h(before, now) if now < before else 0.0,
            f"Users approved of {before:.0%} of the rated answers, and of {now:.0%} of the last {len(sums) - begun}.",
            detected=rated[1][int(certain[0])].start_time if len(certain) else None,
        )


def _sums(values: NDArray[np.float32], known: int) -> NDArray[np.float64]:
    """The sum after each rating of the current window: never below zero, so that better times before do not count.

    values: of both windows, the `known` ones of the reference first; columns are independent of each other.
    """
    short = values[:known].mean(axis=0, dtype=np.float64) - _ALLOWANCE - values[known:]
    total = np.cumsum(short, axis=0)
    return np.asarray(total - np.minimum(np.minimum.accumulate(total, axis=0), 0))


def _begin(sums: NDArray[np.float64]) -> int:
    """Where the fall began that led to the largest sum: after the last rating at which it was zero."""
    return int(np.flatnonzero(sums[: np.argmax(sums)] == 0).max(initial=-1)) + 1


make = Rating
