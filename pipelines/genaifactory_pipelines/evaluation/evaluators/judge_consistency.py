"""Whether the judge's verdict stays the same when the answers change places."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class JudgeConsistency:
    """1 where it does, else 0; a judge with little of it prefers a place, and not an answer."""

    name = "judge_consistency"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return setup.without_verdict

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        assert evidence.compare is not None, "see excludes"
        assert evidence.others is not None, "see excludes"
        one, other = await orders.wins(evidence.compare, item, answer.text, evidence.others[item.id].text)
        return float(one == other)


make = JudgeConsistency
