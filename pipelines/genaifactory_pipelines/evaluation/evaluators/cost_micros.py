"""The price of an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Cost:
    """Millionths of the currency in factory.yaml."""

    name = "cost_micros"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return ""

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return float(answer.cost_micros)


make = Cost
