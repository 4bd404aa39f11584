"""Signals of drift: each finds what was planted, by the right amount, and nothing in windows of one traffic."""

from __future__ import annotations

import itertools
import math
import pkgutil
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift import comparisons, effects, permutations, signals, window
from genaifactory_pipelines.drift.protocol import LEAST_VALUES, Evidence, Signal, TooFew, Window
from genaifactory_pipelines.drift.registry import make_signals
from genaifactory_pipelines.drift.signals import question_classifier
from tests.unit.pipelines.examples import START, feedback, recorded

SIGNALS = {signal.name: signal for signal in make_signals()}
UP, DOWN = [feedback(rating="up")], [feedback(rating="down")]
EMBEDDED = ("question_classifier", "question_groups", "question_mmd")


def made(rows: Sequence[dict[str, Any]], vectors: NDArray[np.floating] | None = None) -> Window:
    """A window of these interactions, an hour after one another, with one vector for each, or the same for all."""
    interactions = [Interaction.model_validate(recorded(number, **values)) for number, values in enumerate(rows)]
    found = np.ones((len(rows), 3)) if vectors is None else vectors
    by_question = {each.question: row.astype(np.float32) for each, row in zip(interactions, found, strict=True)}
    return window.make(interactions, [each for each in interactions if each.question], by_question)


def asked(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"input": [{"role": "user", "content": text, "tool_calls": [], "images": []}]} for text in texts]


def evidence(name: str, reference: Window, current: Window) -> Evidence:
    return SIGNALS[name].measure(reference, current)


def drifted(name: str, reference: Window, current: Window) -> bool:
    found = evidence(name, reference, current)
    return found.p_value < 0.001 and SIGNALS[name].effect.multiples(found.effect) >= 1


def around(directions: Sequence[int], chance: np.random.Generator) -> NDArray[np.float64]:
    """Vectors near one of 20 directions each."""
    found: NDArray[np.float64] = np.eye(20)[list(directions)] + 0.15 * chance.standard_normal((len(directions), 20))
    return found


def test_every_module_is_a_signal_with_its_name() -> None:
    assert sorted(SIGNALS) == sorted(module.name for module in pkgutil.iter_modules(signals.__path__))
    groups = [signal.group for signal in make_signals()]
    assert [group for group, _ in itertools.groupby(groups)] == ["inputs", "retrieval", "outputs", "quality"]


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS.keys())
def test_windows_that_are_constant_or_empty_are_no_drift_and_no_fault(signal: Signal) -> None:
    same = made([{"feedback": UP, **asked(["a"])[0]}] * 60)
    found = signal.measure(same, same)
    assert all(math.isfinite(value) for value in (found.statistic, found.p_value, found.effect))
    assert found.p_value > 0.05
    for pair in ((same, made([])), (made([]), same)):
        with pytest.raises(TooFew, match=rf"window has 0 .*; {LEAST_VALUES} are needed"):
            signal.measure(*pair)


def test_a_signal_is_judged_from_its_least_number_of_values_on() -> None:
    enough = made([{"feedback": UP}] * LEAST_VALUES)
    fewer = made([{"feedback": UP}] * (LEAST_VALUES - 1) + [{"outcome": "failed", "citations": [], "passages": []}])
    assert evidence("rating", enough, enough).p_value == 1
    with pytest.raises(TooFew, match="The current window has 19 rated answers; 20 are needed") as refused:
        evidence("rating", enough, fewer)
    assert refused.value.field == "current"


@pytest.mark.parametrize(
    ("name", "before", "now", "stays"),
    [
        ("question_length", asked(["a b c"] * 200 + ["a b c d"] * 200), asked(["a b c d e f"] * 400), None),
        ("question_language", asked(["How is it?"] * 400), asked(["How is it?"] * 360 + ["Nghỉ bao lâu?"] * 40), None),
        ("route", [{"route": "a"}] * 400, [{"route": "a"}] * 340 + [{"route": "b"}] * 60, [{"route": "a"}] * 396),
        (
            "topic",
            [{"citations": [{"passage_id": "p", "document_id": "a"}]}] * 400,
            [{"citations": [{"passage_id": "p", "document_id": "ab"[n % 2]}]} for n in range(400)],
            [{"citations": [{"passage_id": "p", "document_id": "a"}]}] * 400 + [{"citations": []}] * 200,
        ),
        (
            "best_score",
            [{"passages": [{"score": n / 400}, {"score": 0.0}]} for n in range(400)],
            [{"passages": [{"score": 0.0}, {"score": n / 800}]} for n in range(400)],
            [{"passages": [{"score": n / 400}]} for n in range(400)] + [{"passages": []}] * 200,
        ),
        (
            "nothing_found",
            [{}] * 400,
            [{"passages": [] if n % 8 == 0 else [{"score": 1.0}]} for n in range(400)],
            [{}] * 400 + [{"passages": [], "index_version": ""}] * 200,
        ),
        (
            "refused",
            [{"refused": n % 2 == 0} for n in range(400)],
            [{"refused": n % 8 != 0} for n in range(400)],
            [{"refused": n % 2 == 0} for n in range(400)] + [{"outcome": "failed"}] * 400,
        ),
        ("blocked", [{}] * 400, [{"outcome": "blocked" if n % 8 == 0 else "answered"} for n in range(400)], None),
        ("failed", [{}] * 400, [{"outcome": "failed" if n % 8 == 0 else "answered"} for n in range(400)], None),
        (
            "answer_length",
            [{"output": "x" * n} for n in range(1, 401)],
            [{"output": "x" * (n // 2)} for n in range(1, 401)],
            [{"output": "x" * n} for n in range(1, 401)] + [{"output": "no", "refused": True}] * 200,
        ),
    ],
)
def test_a_planted_change_is_found_and_another_is_not_taken_for_it(
    name: str, before: list[dict[str, Any]], now: list[dict[str, Any]], stays: list[dict[str, Any]] | None
) -> None:
    reference = made(before)
    assert drifted(name, reference, made(now))
    assert not drifted(name, reference, made(stays or before))


def test_the_sentence_has_the_shares_and_no_question() -> None:
    found = evidence("refused", made([{}] * 100), made([{"refused": n < 25} for n in range(100)]))
    assert found.sentence == "The share of answers that are refusals was 0.0% and is 25.0%."
    assert found.statistic == 0.25
    found = evidence("route", made([{"route": "a"}] * 100), made([{"route": "ab"[n % 2]} for n in range(100)]))
    assert found.sentence == "Of the routes, 'a' was 100.0% and is 50.0%; no share has changed more."


def test_rare_names_are_counted_together_and_never_alone() -> None:
    common, rare = ["a"] * 150 + ["b"] * 50, [f"rare {number}" for number in range(40)]
    table, kept = comparisons._table(*map(Counter, ([*common, *rare], [*common, *rare])))
    assert (table.tolist(), kept) == ([[150, 50, 40], [150, 50, 40]], ["a", "b", "others"])
    table, kept = comparisons._table(*map(Counter, ([*common, "c"], common)))
    assert (table.tolist(), kept) == ([[150, 51], [150, 50]], ["a", "b"])  # too few for a column
    assert comparisons.names("routes", rare, rare[:20]).p_value == 1


def test_effects_are_what_their_sources_define() -> None:
    assert comparisons.cohens_h(0.5, 0.6) == pytest.approx(0.2014, abs=1e-4)  # Cohen 1988, table 6.2.2
    assert comparisons.cohens_h(0, 1) == pytest.approx(math.pi)
    reference, current = np.array([5000, 3000, 2000]), np.array([4000, 3500, 2500])
    terms = [(0.4 - 0.5) * math.log(0.4 / 0.5), 0.05 * math.log(0.35 / 0.3), 0.05 * math.log(0.25 / 0.2)]
    assert comparisons.psi(reference, current) == pytest.approx(sum(terms), rel=1e-3)
    assert math.isfinite(comparisons.psi(np.array([10, 0]), np.array([0, 10])))
    assert [effects.AUC.multiples(value) for value in (0.4, 0.5, 0.6)] == pytest.approx([0, 0, 2])


def test_permutations_keep_the_labels_and_the_observed_ones_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutations, "_BLOCK_VALUES", 5_000)
    blocks = list(permutations.labels(3, 2))
    assert [block.shape[1] for block in blocks] == [1_000] * 5
    columns = np.concatenate(blocks, axis=1)
    assert columns[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert set(columns.sum(axis=0)) == {2}
    assert np.allclose(columns[:, 1:].mean(axis=1), 0.4, atol=0.05)
    assert permutations.p_value(np.array([3.0, 1, 2, 3])) == 0.5
    assert permutations.p_value(np.array([9.0, *[1.0] * 99])) == 0.01


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    scores, labels = (
        np.array([[1, 4], [2, 3], [3, 2], [4, 1], [5, 0]]),
        np.array([[0, 0], [1, 1], [0, 0], [1, 1], [1, 1]]),
    )
    found = question_classifier.auc(scores.astype(np.float32), labels.astype(np.float32))
    assert found == pytest.approx([5 / 6, 1 / 6])


def test_the_discrepancy_is_that_of_the_definition() -> None:
    chance = np.random.default_rng(3)
    one, other = (
        made(asked([f"{n} {side}" for n in range(size)]), chance.standard_normal((size, 4)))
        for side, size in (("a", 20), ("b", 25))
    )
    everything = np.concatenate([one.vectors, other.vectors])
    squares = np.array([[np.sum((a - b) ** 2) for b in everything] for a in everything])
    width = np.median([squares[a, b] for a, b in itertools.combinations(range(45), 2)])
    kernel = np.exp(-squares / width)
    within = [
        np.mean([kernel[a, b] for a, b in itertools.permutations(part, 2)]) for part in (range(20), range(20, 45))
    ]
    expected = sum(within) - 2 * kernel[:20, 20:].mean()
    assert evidence("question_mmd", one, other).statistic == pytest.approx(expected, abs=1e-5)


def test_a_new_topic_is_a_group_and_its_questions_are_named() -> None:
    chance = np.random.default_rng(4)
    usual, topics = chance.integers(0, 19, 500), chance.integers(0, 19, 250)
    topics[-25:] = 19
    reference = made(asked([f"{n}" for n in range(500)]), around(list(usual), chance))
    current = made(asked([f"now {n}" for n in range(250)]), around(list(topics), chance))
    assert drifted("question_groups", reference, current)
    found = evidence("question_groups", reference, current)
    assert found.sentence == "A group of similar questions was 0.0% and is 10.0% of all; no other has changed more."
    assert len(found.typical) == 5
    assert set(found.typical) <= {f"req-{number:05}" for number in range(225, 250)}


def test_a_shift_of_all_questions_is_seen_by_the_classifier_and_the_discrepancy() -> None:
    chance = np.random.default_rng(5)
    rows = asked([f"{n}" for n in range(200)])
    reference, current = (made(rows, chance.standard_normal((200, 20)) + shift) for shift in (0, 0.25))
    assert drifted("question_classifier", reference, current)
    assert drifted("question_mmd", reference, current)


def test_a_classifier_is_judged_by_questions_that_it_has_not_seen() -> None:
    chance, rows = np.random.default_rng(5), asked([f"{n}" for n in range(150)])
    reference, current = (made(rows, chance.standard_normal((150, 200))) for _ in range(2))
    assert evidence("question_classifier", reference, current).effect < 0.6  # of those that it has seen: 0.7 and more


@pytest.mark.parametrize("name", EMBEDDED)
def test_of_windows_of_one_traffic_as_many_have_a_low_p_value_as_should(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permutations, "COUNT", 199)
    chance = np.random.default_rng(6)
    rows = [asked([f"{side} {n}" for n in range(size)]) for side, size in (("a", 40), ("b", 60))]
    low = 0
    for _ in range(200):
        # Each is asked ten times, as questions are: equal ones must not be told apart by their window.
        both = np.repeat(around(list(chance.integers(0, 20, 10)), chance), 10, axis=0)[chance.permutation(100)]
        low += evidence(name, made(rows[0], both[:40]), made(rows[1], both[40:])).p_value <= 0.1
    assert 2 <= low <= 32  # 20 are expected of a statistic that is never equal, fewer of groups of whole tens


def rated(ratings: Sequence[float], chance: np.random.Generator) -> Window:
    """Rated answers with these chances of approval."""
    return made([{"feedback": UP if chance.random() < share else DOWN} for share in ratings])


def test_a_fall_of_approval_is_found_with_its_moment_and_a_rise_is_none() -> None:
    chance = np.random.default_rng(7)
    reference = rated([0.8] * 300, chance)
    fell = rated([0.8] * 150 + [0.5] * 150, chance)
    found = evidence("rating", reference, fell)
    assert drifted("rating", reference, fell)
    assert found.detected is not None
    assert START + timedelta(hours=150) < found.detected < START + timedelta(hours=225)
    last = int(found.sentence.rpartition("last ")[2].rstrip("."))
    assert 135 <= last <= 165
    assert not drifted("rating", reference, rated([0.8] * 300, chance))
    risen = evidence("rating", reference, rated([0.95] * 300, chance))
    assert (risen.effect, risen.detected) == (0, None)


def test_a_late_rating_counts_at_the_time_of_its_question() -> None:
    chance = np.random.default_rng(8)
    rows = [{"feedback": UP if chance.random() < (0.9 if n < 100 else 0.4) else DOWN} for n in range(200)]
    late = [
        {"feedback": [{**each["feedback"][0], "time": (START + timedelta(days=90 - n // 3)).isoformat()}]}
        for n, each in enumerate(rows)
    ]
    reference = rated([0.9] * 200, chance)
    assert evidence("rating", reference, made(late)) == evidence("rating", reference, made(rows))


def test_of_one_traffic_the_ratings_have_as_many_low_p_values_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutations, "COUNT", 199)
    chance = np.random.default_rng(9)
    low = sum(
        evidence("rating", rated([0.8] * 60, chance), rated([0.8] * 60, chance)).p_value <= 0.1 for _ in range(200)
    )
    assert 5 <= low <= 32


@pytest.mark.parametrize(
    ("given", "approved"),
    [
        ([], None),
        ([feedback()], None),
        (DOWN + UP, True),
        (UP + DOWN, False),
        ([*UP, feedback(correction="It is 12.")], False),
        ([feedback(rating="up", correction="It is 12.")], True),
    ],
)
def test_the_latest_word_on_an_answer_counts(given: list[dict[str, Any]], approved: bool | None) -> None:
    assert Interaction.model_validate(recorded(0, feedback=given)).approved is approved
