"""Fuses two rankings into one: a weighted sum of scores, each scaled within the query's candidates.

Ranks alone (RRF) lose the distance between scores, which matters where one method is much weaker: the embedding model
is trained on English, so for Vietnamese its share is small enough to decide only near ties (see tests/bench).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from genaifactory_retriever.vectors.protocol import Candidate

# Share of the dense score by the query's language, tuned on one half of tests/bench/retrieval.py's queries.
_DENSE_SHARE = {"en": 0.5, "vi": 0.07, "": 0.3}


class Mode(Enum):
    """How to search."""

    HYBRID = "hybrid"
    LEXICAL = "lexical"
    DENSE = "dense"


def fuse(candidates: Sequence[Candidate], mode: Mode, language: str) -> list[tuple[Candidate, float]]:
    """Candidates with their scores, best first; ties are sorted by id, so that the order is deterministic."""
    if mode is Mode.LEXICAL:
        scored = [(c, c.lexical) for c in candidates if c.lexical > 0]
    elif mode is Mode.DENSE:
        scored = [(c, c.dense) for c in candidates]
    else:
        scored = _weighted(candidates, _DENSE_SHARE.get(language, _DENSE_SHARE[""]))
    return sorted(scored, key=lambda item: (-item[1], item[0].id))


def _weighted(candidates: Sequence[Candidate], share: float) -> list[tuple[Candidate, float]]:
    # BM25 has a true zero; cosine similarity has none, so the lowest among the candidates is used.
    most_lexical = max((c.lexical for c in candidates), default=0.0) or 1.0
    least, most = min((c.dense for c in candidates), default=0.0), max((c.dense for c in candidates), default=0.0)
    span = most - least or 1.0
    return [(c, (1 - share) * c.lexical / most_lexical + share * (c.dense - least) / span) for c in candidates]
