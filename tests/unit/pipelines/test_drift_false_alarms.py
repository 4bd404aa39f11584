"""The drift check on real questions and their embeddings by MiniLM; the long form is tests/bench/drift.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from genaifactory_pipelines.drift.registry import make_signals
from genaifactory_pipelines.drift.verdict import judge
from tests.bench import drift
from tests.data import debian_guide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts() -> drift.Texts:
    return drift.texts(debian_guide.corpus_or_skip())


@pytest.fixture(scope="module")
def questions(texts: drift.Texts) -> list[str]:
    """Of the English guide, without its licence."""
    everything = texts.without(drift.LICENCE)
    return [
        everything[position] for position in np.random.default_rng(1).permutation(len(everything))[: 2 * drift.SIZE]
    ]


@pytest.fixture(scope="module")
def vectors(
    texts: drift.Texts, questions: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, NDArray[np.float32]]:
    foreign = [*texts.handbook, *texts.english[drift.LICENCE], *texts.vietnamese[:80]]
    return drift.embedded([*questions, *foreign], tmp_path_factory.mktemp("minilm"))


def alarms(
    foreign: list[str], questions: list[str], vectors: Mapping[str, NDArray[np.float32]], count: int
) -> list[tuple[str, ...]]:
    """What drifted, of as many pairs of windows."""
    chance, signals = np.random.default_rng(2), make_signals()
    pairs = (drift.windows(questions, foreign, vectors, chance) for _ in range(count))
    return [judge(signals, *pair, false_discovery_rate=drift.FALSE_DISCOVERY_RATE).by for pair in pairs]


def test_windows_of_the_same_questions_are_no_drift(
    questions: list[str], vectors: Mapping[str, NDArray[np.float32]]
) -> None:
    assert alarms([], questions, vectors, 6) == [()] * 6


def test_a_tenth_of_another_language_or_topic_is_found(
    texts: drift.Texts, questions: list[str], vectors: Mapping[str, NDArray[np.float32]]
) -> None:
    for foreign, by in (
        (list(texts.vietnamese[:80]), "question_language"),
        (list(texts.handbook), "question_groups"),
        (list(texts.english[drift.LICENCE]), "question_groups"),
    ):
        found = alarms(foreign, questions, vectors, 3)
        assert all(by in each for each in found), (by, found)
