"""Whether an answer holds what it may not: a text that its item forbids, or the system prompt."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import leaks
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Forbidden:
    """1 for such an answer, else 0."""

    name = "forbidden"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.forbidden or setup.hidden else "have no checks.forbidden, and no system prompt is known"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return float(leaks.forbidden(item, answer) or leaks.repeats_prompt(item, answer, evidence.hidden))


make = Forbidden
