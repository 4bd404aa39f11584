"""Fusion of two rankings."""

from __future__ import annotations

from genaifactory_retriever.fusion import Mode, fuse
from genaifactory_retriever.vectors.protocol import Candidate

CANDIDATES = [Candidate(1, 0.9, 0.0), Candidate(2, 0.8, 5.0), Candidate(3, 0.1, 10.0), Candidate(4, 0.1, 10.0)]


def test_each_mode_ranks_by_its_own_score() -> None:
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.DENSE, "en")] == [1, 2, 3, 4]
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.LEXICAL, "en")] == [3, 4, 2]


def test_hybrid_prefers_candidates_of_both_methods() -> None:
    assert next(found.id for found, _ in fuse(CANDIDATES, Mode.HYBRID, "en")) == 2


def test_the_lexical_score_decides_for_vietnamese() -> None:
    assert [found.id for found, _ in fuse(CANDIDATES, Mode.HYBRID, "vi")][:2] == [3, 4]


def test_ties_are_sorted_by_id() -> None:
    assert fuse(CANDIDATES[::-1], Mode.HYBRID, "vi") == fuse(CANDIDATES, Mode.HYBRID, "vi")


def test_equal_scores_do_not_divide_by_zero() -> None:
    assert fuse([Candidate(1), Candidate(2)], Mode.HYBRID, "") == [(Candidate(1), 0.0), (Candidate(2), 0.0)]
    assert fuse([], Mode.HYBRID, "") == []
