"""How often the judge agrees with people: on golden items of which a person has rejected an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class JudgeAgreement:
    """The share of both orders in which the judge prefers the expected answer to the rejected one; 0, 0.5 or 1.

    It is the judge's alone, and the same for every model.
    """

    name = "judge_agreement"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        if not setup.judge:
            return "need a judge"
        return "" if item.rejected else "have no 'rejected'"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        assert evidence.compare is not None, "see excludes"
        won = await orders.wins(evidence.compare, item, item.expected[0], item.rejected)
        return sum(each == 1 for each in won) / 2


make = JudgeAgreement
