"""One ranking out of two."""

from __future__ import annotations

from genaifactory_retriever.fusion import Mode, fuse
from genaifactory_retriever.vectors.protocol import Candidate

CANDIDATES = [Candidate(1, 0.9, 0.0), Candidate(2, 0.8, 5.0), Candidate(3, 0.1, 10.0), Candidate(4, 0.1, 10.0)]


def test_each_mode_ranks_by_its_own_score() -> None:
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.DENSE, "en")] == [1, 2, 3, 4]
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.LEXICAL, "en")] == [3, 4, 2]


def test_hybrid_prefers_what_both_find() -> None:
    assert next(found.id for found, _ in fuse(CANDIDATES, Mode.HYBRID, "en")) == 2


def test_in_vietnamese_words_decide() -> None:
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.HYBRID, "vi")][:2] == [3, 4]


def test_ties_always_fall_the_same_way() -> None:
    assert fuse(CANDIDATES[::-1], Mode.HYBRID, "vi") == fuse(CANDIDATES, Mode.HYBRID, "vi")


def test_equal_scores_do_not_divide_by_zero() -> None:
    assert fuse([Candidate(1), Candidate(2)], Mode.HYBRID, "") == [(Candidate(1), 0.0), (Candidate(2), 0.0)]
    assert fuse([], Mode.HYBRID, "") == []
