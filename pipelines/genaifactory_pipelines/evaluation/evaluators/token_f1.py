"""Token F1: how many of the answer's words are those of an expected answer, and how many of those are in the answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import words
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class TokenF1:
    """The harmonic mean of precision and recall of the words, of the expected answer that fits best; 0 to 1."""

    name = "token_f1"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.expected else "have no right answer"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        found = words.of(answer.text)
        return max(words.f1(found, words.of(text)) for text in item.expected)


make = TokenF1
