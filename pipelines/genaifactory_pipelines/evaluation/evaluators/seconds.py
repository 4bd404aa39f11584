"""The time until the end of an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Seconds:
    """Seconds, also of an answer that was blocked or failed."""

    name = "seconds"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return ""

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return answer.seconds


make = Seconds
