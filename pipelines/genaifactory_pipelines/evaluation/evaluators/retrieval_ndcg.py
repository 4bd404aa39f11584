"""nDCG of the search: how high the documents that hold the answer stand.

Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
"""

from __future__ import annotations

import math
from typing import Literal

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evidence, Item, Setup


class Ndcg:
    """Normalised discounted cumulative gain, with each document counted once, at its first passage; 0 to 1."""

    name = "retrieval_ndcg"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if item.documents else "have no lineage.documents"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        order = list(dict.fromkeys(answer.documents))
        wanted = set(item.documents)
        gain = sum(1 / math.log2(rank + 2) for rank, document in enumerate(order) if document in wanted)
        return gain / sum(1 / math.log2(rank + 2) for rank in range(len(wanted)))


make = Ndcg
