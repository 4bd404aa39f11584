"""How much better an item is answered in its own words than in others; the items are those of the suite `memorised`."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation import words
from genaifactory_pipelines.evaluation.protocol import Answer, Evidence, Item, Setup


class Memorised:
    """Token F1 of the answer to the golden item minus that of the answer to its paraphrase; -1 to 1.

    One that was trained on the golden set has a gain that production lacks. It is no proof of the contrary: a model
    that has also learnt from paraphrases of the items has none.
    """

    name = "memorised"
    suite = "memorised"
    better: Literal["lower"] = "lower"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return ""

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        own = evidence.answers[item.twin]
        return _f1(item, own) - _f1(item, answer)


def _f1(item: Item, answer: Answer) -> float:
    found = words.of(answer.text)
    return max(words.f1(found, words.of(text)) for text in item.expected)


make = Memorised
