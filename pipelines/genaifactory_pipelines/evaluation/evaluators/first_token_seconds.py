"""The time until the first text of an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class FirstToken:
    """Seconds; of an answer without text, those until its end."""

    name = "first_token_seconds"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return ""

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return answer.first_token_seconds if answer.text else answer.seconds


make = FirstToken
