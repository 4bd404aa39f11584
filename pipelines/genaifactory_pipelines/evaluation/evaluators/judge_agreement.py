"""How often the judge agrees with people: on golden items of which a person has rejected an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import orders
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class JudgeAgreement:
    """The share of both orders in which the judge prefers the expected answer to the rejected one; 0, 0.5 or 1.

    It is the judge's alone, and the same for every model.
    """

    name = "judge_agreement"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator; None without a judge, and for an item without a rejected answer."""
        if evidence.compare is None or not item.rejected:
            return None
        won = await orders.wins(evidence.compare, item, item.expected[0], item.rejected)
        return sum(each == 1 for each in won) / 2


make = JudgeAgreement
