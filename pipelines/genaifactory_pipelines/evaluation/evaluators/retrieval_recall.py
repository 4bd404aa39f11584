"""Recall of the search: how many of the documents that hold the answer were found."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class Recall:
    """The share of the item's documents that are among those found; 0 to 1."""

    name = "retrieval_recall"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator; None for an item whose documents are not known."""
        if not item.documents:
            return None
        return len(set(answer.documents).intersection(item.documents)) / len(set(item.documents))


make = Recall
