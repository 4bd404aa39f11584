"""What a judge prefers: the model's answer or the other one's."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Judged:
    """1 for a win against the other model's answer, 0.5 for a tie, 0 for a loss; the mean of both orders."""

    name = "judge"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return setup.without_verdict

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        assert evidence.compare is not None, "see excludes"
        assert evidence.others is not None, "see excludes"
        return sum(await orders.wins(evidence.compare, item, answer.text, evidence.others[item.id].text)) / 2


make = Judged
