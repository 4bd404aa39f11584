"""What a judge prefers: the model's answer or the other one's."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class Judged:
    """1 for a win against the other model's answer, 0.5 for a tie, 0 for a loss; the mean of both orders."""

    name = "judge"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator; None without a judge, or without a candidate."""
        if evidence.compare is None or evidence.others is None:
            return None
        return sum(await orders.wins(evidence.compare, item, answer.text, evidence.others[item.id].text)) / 2


make = Judged
