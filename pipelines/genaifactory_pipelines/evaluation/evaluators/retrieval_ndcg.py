"""nDCG of the search: how high the documents that hold the answer stand.

Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
"""

from __future__ import annotations

import math
from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item


class Ndcg:
    """Normalised discounted cumulative gain, with each document counted once, at its first passage; 0 to 1."""

    name = "retrieval_ndcg"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float | None:
        """See Evaluator; None for an item whose documents are not known."""
        if not item.documents:
            return None
        order = list(dict.fromkeys(answer.documents))
        wanted = set(item.documents)
        gain = sum(1 / math.log2(rank + 2) for rank, document in enumerate(order) if document in wanted)
        return gain / sum(1 / math.log2(rank + 2) for rank in range(len(wanted)))


make = Ndcg
