"""What a gate needs of a golden set, which is checked before anything is asked, trained or built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.evaluation.protocol import Setup
from genaifactory_pipelines.steps import gate
from tests.unit.pipelines.examples import golden_of

BESIDE_PRODUCTION = Setup(compared=True)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden set of as many items as a rule needs at least."""
    return golden_of(tmp_path / "golden.jsonl", 20)


def enough(golden: Path, setup: Setup = BESIDE_PRODUCTION, **rule: Any) -> None:
    gate.require_enough(specs.Gate.model_validate({"name": "release", "rules": [rule]}), golden, setup)


def test_a_golden_set_too_small_for_a_rule_is_reported_before_a_run_begins(tmp_path: Path) -> None:
    few = golden_of(tmp_path / "few.jsonl", 19)
    with pytest.raises(InvalidArgument) as found:
        enough(few, metric="exact_match", better_by=0.1)
    assert found.value.field == "gates[release].rules[0].least_items"
    assert found.value.message.endswith(
        "few.jsonl has 19 questions, and 20 are needed for the rule 'exact_match better_by 0.1' of the gate 'release'. "
        "Add questions, lower its least_items, or take a gate without the rule."
    )
    enough(few, metric="exact_match", at_least=0, least_items=19)
    enough(few, metric="attack_success", not_worse_by=0)  # its questions are those of a suite
    with pytest.raises(InvalidArgument, match="has 19 questions that count for the suite bias, and 20 are needed"):
        enough(few, metric="bias_gap", not_worse_by=0)  # they are made of the golden ones


@pytest.mark.parametrize(
    ("rule", "lacking", "mended"),
    [
        ({"metric": "judge"}, "need a judge", {"setup": Setup(compared=True, judge=True)}),
        ({"metric": "judge_consistency"}, "need a judge", {"setup": Setup(compared=True, judge=True)}),
        ({"metric": "judge_agreement"}, "need a judge", {}),
        ({"metric": "sql_execution"}, "have no checks.tables", {}),
        ({"metric": "retrieval_recall"}, "have no lineage.documents", {}),
        ({"metric": "groundedness"}, "need a route that searches documents", {"setup": Setup(searched=True)}),
        (
            {"metric": "forbidden"},
            "have no checks.forbidden, and no system prompt is known",
            {"setup": Setup(hidden=True)},
        ),
    ],
)
def test_a_gate_that_can_never_be_judged_is_reported_before_a_run_begins(
    golden: Path, rule: dict[str, Any], lacking: str, mended: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as found:
        enough(golden, at_least=0.5, **rule)
    assert found.value.field == "gates[release].rules[0].metric"
    assert found.value.message == (
        f"{golden} has 0 questions that count, and 20 are needed for the rule '{rule['metric']} at_least 0.5' of the "
        f"gate 'release'; 20 others {lacking}. Add questions, lower its least_items, or take a gate without the rule."
    )
    if mended:
        enough(golden, at_least=0.5, **rule, **mended)


def test_the_largest_slice_of_a_golden_set_must_be_large_enough(golden: Path) -> None:
    lines = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["topic"] = "leave" if number < 12 else "desks"
    golden.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    enough(golden, metric="exact_match", at_least=0, each="topic", least_items=12)
    with pytest.raises(InvalidArgument, match="has 12 questions of one topic, and 13 are needed"):
        enough(golden, metric="exact_match", at_least=0, each="topic", least_items=13)
