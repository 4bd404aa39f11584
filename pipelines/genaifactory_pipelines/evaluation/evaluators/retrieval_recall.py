"""Recall of the search: how many of the documents that hold the answer were found."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Recall:
    """The share of the item's documents that are among those found; 0 to 1."""

    name = "retrieval_recall"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.documents else "have no lineage.documents"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        return len(set(answer.documents).intersection(item.documents)) / len(set(item.documents))


make = Recall
