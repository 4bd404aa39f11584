"""Groundedness: how many of the answer's claims its passages support (Es et al., RAGAS, 2024: faithfulness)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from genaifactory_pipelines.evaluation import claims
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Embed, Evidence, Item, Setup


class Groundedness:
    """The share of the answer's claims that are supported; 1 for an answer without any, as of a refusal.

    A judge says which are, where there is one; else words, numbers, names and meaning do.
    """

    name = "groundedness"
    suite = GOLDEN
    better: Literal["higher"] = "higher"

    def excludes(self, item: Item, setup: Setup) -> str:
        """See Evaluator."""
        return "" if setup.searched else "need a route that searches documents"

    async def score(self, item: Item, answer: Answer, evidence: Evidence) -> float:
        """See Evaluator."""
        found = [] if answer.refused else claims.of(answer.text)
        if not found:
            return 1.0
        if evidence.support is not None and answer.passages:
            judged = await evidence.support([claim.text for claim in found], answer.passages)
            return sum(judged) / len(judged)
        windows = list(dict.fromkeys(window for passage in answer.passages for window in claims.windows(passage)))
        alike = None
        if evidence.embed is not None and windows:
            alike = await _similarity(evidence.embed, [claim.text for claim in found], windows)
        supported = [claims.support(claim, windows, alike, known=item.question) >= claims.SUPPORTED for claim in found]
        return sum(supported) / len(supported)


async def _similarity(embed: Embed, texts: list[str], windows: list[str]) -> claims.Alike:
    everything = list(dict.fromkeys([*texts, *windows]))
    vectors = np.asarray(await embed(everything), dtype=np.float32)
    place = {text: index for index, text in enumerate(everything)}
    return lambda one, other: float(vectors[place[one]] @ vectors[place[other]])


make = Groundedness
