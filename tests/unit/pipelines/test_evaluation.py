"""Evaluators, intervals and the gate: planted regressions are stopped by the right rule, noise passes as nothing."""

from __future__ import annotations

import asyncio
import math
import pkgutil
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.gates import Gate, GateRule
from genaifactory_pipelines.evaluation import evaluators, scoring
from genaifactory_pipelines.evaluation.evaluators.exact_match import ExactMatch
from genaifactory_pipelines.evaluation.evaluators.retrieval_ndcg import Ndcg
from genaifactory_pipelines.evaluation.evaluators.retrieval_recall import Recall
from genaifactory_pipelines.evaluation.evaluators.token_f1 import TokenF1
from genaifactory_pipelines.evaluation.gate import Measured, judge
from genaifactory_pipelines.evaluation.protocol import GOLDEN, NO_EVIDENCE, Answer, Evidence, Item, Setup
from genaifactory_pipelines.evaluation.registry import make_evaluators, make_suites
from genaifactory_pipelines.evaluation.scoring import score
from genaifactory_pipelines.evaluation.statistics import mean_of, paired_difference


def item(number: int = 0, *, expected: tuple[str, ...] = ("Hai ổ đĩa.",), **values: object) -> Item:
    return Item(id=str(number), messages=(), expected=expected, **values)  # type: ignore[arg-type]


GIVEN = Item("given", [types_pb2.Message(role=types_pb2.ROLE_USER, content="How many disks?")], expected=("Two.",))


@pytest.mark.parametrize(
    ("text", "exact", "f1"),
    [
        ("Hai ổ đĩa.", 1, 1),
        ("hai  ổ đĩa [1]", 1, 1),
        ("Hai ổ đĩa", 1, 1),  # decomposed
        ("Ba ổ đĩa.", 0, 2 / 3),
        ("Hai ổ đĩa có thể hỏng.", 0, 2 * 3 / 9),
        ("", 0, 0),
        ("không", 0, 0),
    ],
)
async def test_text_is_compared_by_its_words(text: str, exact: float, f1: float) -> None:
    assert await ExactMatch().score(item(), Answer(text), NO_EVIDENCE) == exact
    assert await TokenF1().score(item(), Answer(text), NO_EVIDENCE) == pytest.approx(f1)


async def test_the_expected_answer_that_fits_best_counts_and_an_item_without_one_has_no_score() -> None:
    assert await TokenF1().score(item(expected=("three", "two disks")), Answer("two disks"), NO_EVIDENCE) == 1
    for evaluator in (ExactMatch(), TokenF1()):
        assert evaluator.excludes(item(expected=()), Setup())
        assert not evaluator.excludes(item(), Setup())


async def test_retrieval_counts_each_document_once_at_its_first_passage() -> None:
    found = Answer("", documents=["b", "b", "a"])
    assert await Recall().score(item(documents=("a", "c")), found, NO_EVIDENCE) == 0.5
    assert await Ndcg().score(item(documents=("b",)), found, NO_EVIDENCE) == 1
    assert await Ndcg().score(item(documents=("a",)), found, NO_EVIDENCE) == pytest.approx(1 / math.log2(3))
    for evaluator in (Recall(), Ndcg()):
        assert evaluator.excludes(item(), Setup()) == "have no lineage.documents"
        assert not evaluator.excludes(item(documents=("a",)), Setup())


def test_every_module_is_an_evaluator_with_its_name_and_judges_a_failed_answer() -> None:
    found = make_evaluators()
    assert sorted(found) == sorted(module.name for module in pkgutil.iter_modules(evaluators.__path__))
    for evaluator in found.values():
        assert evaluator.better in ("higher", "lower")
        suite = [item(documents=("a",))]
        if evaluator.suite != GOLDEN:
            suite = make_suites()[evaluator.suite].items([GIVEN])
        failed = Answer("", error="UNAVAILABLE")
        evidence = Evidence(answers={each.id: failed for each in (GIVEN, *suite)})
        for each in scoring.judged(evaluator, suite, evidence.setup):
            assert math.isfinite(asyncio.run(evaluator.score(each, failed, evidence)))


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    chance = np.random.default_rng(5)
    covered = sum(
        found.low <= 0.3 <= found.high
        for found in (mean_of(list(chance.binomial(1, 0.3, 150).astype(float))) for _ in range(200))
    )
    assert covered >= 180


def test_the_same_scores_give_the_same_interval_and_order_of_pairs_matters() -> None:
    candidate, production = [1.0, 0.0, 1.0, 1.0] * 10, [1.0, 0.0, 0.0, 1.0] * 10
    assert paired_difference(candidate, production) == paired_difference(candidate, production)
    assert paired_difference(candidate, candidate).high == 0
    with pytest.raises(InvalidArgument, match="are no pairs"):
        paired_difference([1.0], [])
    with pytest.raises(InvalidArgument, match="at least two items, and there are 1"):
        mean_of([1.0])


async def test_an_evaluator_scores_the_items_of_its_suite_alone() -> None:
    items = [item(1), item(2, suite="other")]
    answers = {"1": Answer("Hai ổ đĩa."), "2": Answer("Hai ổ đĩa.")}
    counted: list[int] = []
    scores = await score({"token_f1": TokenF1()}, items, answers, NO_EVIDENCE, report=counted.append)
    assert scores == {"token_f1": {"1": 1.0}}
    assert counted == [1]


ITEMS = [item(number, slices={"language": "vi" if number % 4 == 0 else "en"}) for number in range(100)]


def measured(candidate: float, production: float, *, higher: bool = True, vietnamese: float | None = None) -> Measured:
    """Scores with these means, which vary alike."""

    def scores(mean: float, of_vietnamese: float | None = None) -> dict[str, float]:
        return {
            each.id: (of_vietnamese if of_vietnamese is not None and each.slices["language"] == "vi" else mean)
            + 0.1 * (int(each.id) % 3 - 1)
            for each in ITEMS
        }

    return Measured(scores(candidate, vietnamese), scores(production), higher)


def gate(**rule: object) -> Gate:
    return Gate(name="release", rules=(GateRule.model_validate({"metric": "m", **rule}),))


@pytest.mark.parametrize(
    ("rule", "scores", "passed"),
    [
        ({"not_worse_by": 0.02}, measured(0.70, 0.70), True),
        ({"not_worse_by": 0.02}, measured(0.69, 0.70), True),
        ({"not_worse_by": 0.02}, measured(0.65, 0.70), False),
        ({"not_worse_by": 0.1}, measured(1.3, 1.0, higher=False), False),
        ({"not_worse_by": 0.1}, measured(1.05, 1.0, higher=False), True),
        ({"better_by": 0}, measured(0.75, 0.70), True),
        ({"better_by": 0}, measured(0.70, 0.70), False),
        ({"better_by": 0}, measured(0.70, 0.75, higher=False), True),
        ({"at_least": 0.6}, measured(0.61, 0.9), True),
        ({"at_least": 0.6}, measured(0.59, 0.1), False),
        ({"at_most": 2}, measured(2.1, 3, higher=False), False),
        ({"at_least": 0.6, "quantile": 0.5}, measured(0.61, 0.9), True),
        ({"at_least": 0.6, "quantile": 0.05}, measured(0.61, 0.9), False),
        ({"at_most": 2, "quantile": 0.95}, measured(1.95, 3, higher=False), False),
        ({"not_worse_by": 0.1, "quantile": 0.95}, measured(1.3, 1.0, higher=False), False),
        ({"not_worse_by": 0.1, "quantile": 0.95}, measured(1.05, 1.0, higher=False), True),
        ({"better_by": 0, "quantile": 0.5}, measured(0.75, 0.70), True),
    ],
)
def test_a_rule_holds_or_stops_the_candidate_with_its_evidence(
    rule: dict[str, object], scores: Measured, passed: bool
) -> None:
    verdict = judge(gate(**rule), ITEMS, {"m": scores})
    assert verdict.passed is passed
    (finding,) = verdict.findings
    assert "on 100 items" in finding.evidence
    assert verdict.failed() == ([] if passed else [finding])


def test_a_language_that_falls_is_not_hidden_by_the_others() -> None:
    scores = measured(0.75, 0.70, vietnamese=0.62)
    assert judge(gate(not_worse_by=0.02), ITEMS, {"m": scores}).passed
    verdict = judge(gate(not_worse_by=0.02, each="language"), ITEMS, {"m": scores})
    assert [finding.slice for finding in verdict.failed()] == ["language=vi"]
    few = judge(gate(not_worse_by=0.02, each="language", least_items=40), ITEMS, {"m": scores})
    assert few.passed
    assert [(finding.slice, finding.judged) for finding in few.findings] == [
        ("language=en", True),
        ("language=vi", False),
    ]


def test_slow_answers_of_a_few_items_are_found_by_a_quantile_and_not_by_the_mean() -> None:
    production = {each.id: 1 + 0.01 * (int(each.id) % 7) for each in ITEMS}
    candidate = {name: value + (2 if int(name) % 10 == 0 else 0) for name, value in production.items()}
    scores = {"m": Measured(candidate, production, higher_is_better=False)}
    assert judge(gate(not_worse_by=0.4), ITEMS, scores).passed
    (finding,) = judge(gate(not_worse_by=0.4, quantile=0.95), ITEMS, scores).failed()
    assert finding.rule == "m quantile 0.95 not_worse_by 0.4"
    assert "candidate 3.0" in finding.evidence


def judged(rule: str, value: float, candidate: Sequence[float], production: Sequence[float]) -> bool:
    """Whether the candidate passes a gate of one rule."""
    one, other = ({each.id: score for each, score in zip(ITEMS, some, strict=True)} for some in (candidate, production))
    return judge(gate(**{rule: value}), ITEMS, {"m": Measured(one, other, higher_is_better=True)}).passed


def test_of_200_pairs_of_equal_models_at_most_5_percent_pass_as_better() -> None:
    chance = np.random.default_rng(11)
    passed = 0
    for _ in range(200):
        hard = chance.beta(2, 2, len(ITEMS))  # an item that is hard is hard for both
        candidate, production = (list(chance.binomial(1, hard).astype(float)) for _ in range(2))
        passed += judged("better_by", 0, candidate, production)
    assert 0 < passed <= 10


def test_a_difference_that_may_be_chance_is_neither_better_nor_not_worse() -> None:
    production = [float(number % 2) for number in range(len(ITEMS))]
    few_more = [1.0 if number in (0, 2, 4) else float(number % 2 and number != 1) for number in range(len(ITEMS))]
    assert sum(few_more) == sum(production) + 2
    assert not judged("better_by", 0, few_more, production)
    assert judged("not_worse_by", 0.05, few_more, production)
    assert not judged("not_worse_by", 0.03, production, few_more)


def test_of_pairs_of_equal_models_hardly_any_passes_as_faster_by_its_quantile() -> None:
    chance = np.random.default_rng(13)
    faster = 0
    for _ in range(40):
        base = chance.lognormal(0, 0.5, 60)
        candidate, production = (base * chance.lognormal(0, 0.2, 60) for _ in range(2))
        faster += paired_difference(list(candidate), list(production), quantile=0.95).high < 0
    assert faster <= 2


def test_what_cannot_be_judged_is_an_error_and_never_a_pass() -> None:
    scores = measured(0.75, 0.70)
    with pytest.raises(InvalidArgument, match="which was not measured; measured were: other"):
        judge(gate(at_least=0), ITEMS, {"other": scores})
    with pytest.raises(InvalidArgument, match="too few items to be judged; it needs 200"):
        judge(gate(at_least=0, least_items=200), ITEMS, {"m": scores})
    missing = Measured({key: value for key, value in scores.candidate.items() if key != "7"}, scores.production, True)
    with pytest.raises(InvalidArgument, match="The item '7' has a score on 'm' of only one"):
        judge(gate(at_least=0), ITEMS, {"m": missing})


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "and has none"),
        ({"at_least": 1, "not_worse_by": 0}, "and has not_worse_by and at_least"),
        ({"not_worse_by": -1}, "greater than or equal to 0"),
        ({"at_most": 1, "quantile": 1}, "less than 1"),
        ({"at_most": 1, "quantile": 0.99}, "least_items must be 100 at least for the quantile 0.99"),
        ({"at_least": 1, "quantile": 0.02}, "least_items must be 50 at least"),
        ({"at_least": 1, "each": "colour"}, "'language', 'topic' or 'length'"),
    ],
)
def test_a_wrong_rule_is_refused(rule: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        gate(**rule)
