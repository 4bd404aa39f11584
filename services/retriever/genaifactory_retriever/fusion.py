"""One ranking out of two: a weighted sum of scores, each scaled within the query's own candidates.

Ranks alone (RRF) lose how much better the first is than the second, which matters where one method is much weaker: the
embedding model reads English, so on Vietnamese it may decide between near ties and no more (see tests/bench).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from genaifactory_retriever.vectors.protocol import Candidate

# Share of the dense score by the query's language, chosen on the tuning half of tests/bench/retrieval.py.
_DENSE_SHARE = {"en": 0.5, "vi": 0.07, "": 0.3}


class Mode(Enum):
    """How to search."""

    HYBRID = "hybrid"
    LEXICAL = "lexical"
    DENSE = "dense"


def fuse(candidates: Sequence[Candidate], mode: Mode, language: str) -> list[tuple[Candidate, float]]:
    """Candidates with their scores, best first; ties go by id, so that the same query always ranks the same."""
    if mode is Mode.LEXICAL:
        scored = [(c, c.lexical) for c in candidates if c.lexical > 0]
    elif mode is Mode.DENSE:
        scored = [(c, c.dense) for c in candidates]
    else:
        scored = _weighted(candidates, _DENSE_SHARE.get(language, _DENSE_SHARE[""]))
    return sorted(scored, key=lambda item: (-item[1], item[0].id))


def _weighted(candidates: Sequence[Candidate], share: float) -> list[tuple[Candidate, float]]:
    # BM25 has a true zero; a cosine of any two texts has not, so its own least stands for it.
    most_lexical = max((c.lexical for c in candidates), default=0.0) or 1.0
    least, most = min((c.dense for c in candidates), default=0.0), max((c.dense for c in candidates), default=0.0)
    span = most - least or 1.0
    return [(c, (1 - share) * c.lexical / most_lexical + share * (c.dense - least) / span) for c in candidates]
