"""The time until the first text of an answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class FirstToken:
    """Seconds; of an answer without text, those until its end."""

    name = "first_token_seconds"
    suite = GOLDEN
    better: Literal["lower"] = "lower"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator."""
        return answer.first_token_seconds if answer.text else answer.seconds


make = FirstToken
