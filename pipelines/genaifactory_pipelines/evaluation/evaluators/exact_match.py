"""Exact match: the answer's words are those of an expected answer."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import words
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class ExactMatch:
    """1 where the words are those of an expected answer, else 0."""

    name = "exact_match"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.expected else "have no right answer"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return float(words.of(answer.text) in [words.of(text) for text in item.expected])


make = ExactMatch
