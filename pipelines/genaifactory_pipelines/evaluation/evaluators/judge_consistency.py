"""Whether the judge's verdict stays the same when the answers change places."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class JudgeConsistency:
    """1 where it does, else 0; a judge with little of it prefers a place, and not an answer."""

    name = "judge_consistency"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator; None without a judge, or without a candidate."""
        if evidence.compare is None or evidence.others is None:
            return None
        one, other = await orders.wins(evidence.compare, item, answer.text, evidence.others[item.id].text)
        return float(one == other)


make = JudgeConsistency
