"""The score of the best passage of each search."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class BestScore:
    """The rank score of the best passage, of searches that found one."""

    name = "best_score"
    group: Literal["retrieval"] = "retrieval"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.numbers("best scores of searches", _scores(reference), _scores(current))


def _scores(window: Window) -> list[float]:
    return [max(passage.score for passage in each.passages) for each in window.independent if each.passages]


make = BestScore
