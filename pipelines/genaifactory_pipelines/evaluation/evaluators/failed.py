"""Whether an item got no answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Failed:
    """1 for an error, else 0."""

    name = "failed"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return ""

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return float(bool(answer.error))


make = Failed
