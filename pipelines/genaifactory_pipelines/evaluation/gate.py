"""The gate: rules of factory.yaml applied to the scores of a candidate and of production on the same items."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.gates import CONDITIONS, Gate, GateRule
from genaifactory_pipelines.evaluation.protocol import Item
from genaifactory_pipelines.evaluation.statistics import paired_difference
from genaifactory_pipelines.values import Values

Scores = Mapping[str, float]
"""Scores of one metric by the item's id; without the items that it does not concern."""


@dataclass(frozen=True)
class Measured:
    """The scores of one metric."""

    candidate: Scores
    production: Scores | None
    """None when production alone was evaluated, as the candidate; then nothing is compared."""
    higher_is_better: bool


class Finding(Values):
    """What a rule says of all items, or of one slice."""

    rule: str
    """As it is in factory.yaml: "exact_match not_worse_by 0.02"."""
    slice: str
    """"language=vi"; empty for all items."""
    passed: bool
    judged: bool
    """False for a slice of too few items, which passes."""
    evidence: str

    @property
    def what(self) -> str:
        """The rule, and the slice where it is of one: "exact_match at_least 0.5 (language=vi)"."""
        return f"{self.rule} ({self.slice})" if self.slice else self.rule


class Verdict(Values):
    """Whether a candidate passes the gate, and why."""

    gate: str
    passed: bool
    findings: tuple[Finding, ...]

    def failed(self) -> list[Finding]:
        """The findings that stop the candidate."""
        return [finding for finding in self.findings if not finding.passed]


def require_no_comparison(gate: Gate) -> None:
    """Raises InvalidArgument for a rule that compares a candidate with production, for where there is no candidate."""
    for index, rule in enumerate(gate.rules):
        if rule.compares:
            raise InvalidArgument(
                f"The rule '{text(rule)}' of the gate '{gate.name}' compares a candidate with production, and there "
                "is no candidate.",
                field=f"gates[{gate.name}].rules[{index}]",
            )


def judge(gate: Gate, items: Sequence[Item], measured: Mapping[str, Measured]) -> Verdict:
    """The verdict. Fails closed.

    Raises InvalidArgument for a rule whose metric was not measured, for one that compares where there is no candidate,
    for one without any item that could be judged, and for items that only one of the two models has a score for.
    """
    if any(each.production is None for each in measured.values()):
        require_no_comparison(gate)
    findings: list[Finding] = []
    for index, rule in enumerate(gate.rules):
        field = f"gates[{gate.name}].rules[{index}].metric"
        if rule.metric not in measured:
            raise InvalidArgument(
                f"The gate '{gate.name}' has a rule on '{rule.metric}', which was not measured; measured were: "
                f"{', '.join(sorted(measured)) or 'none'}.",
                field=field,
            )
        found = list(_findings(rule, items, measured[rule.metric]))
        if not any(finding.judged for finding in found):
            raise InvalidArgument(
                f"The rule '{text(rule)}' of the gate '{gate.name}' has too few items to be judged; it needs "
                f"{rule.least_items}. Add items to the golden set, or lower least_items.",
                field=field,
            )
        findings += found
    return Verdict(gate=gate.name, passed=all(finding.passed for finding in findings), findings=tuple(findings))


def slice_of(rule: GateRule, item: Item) -> str:
    """What a rule counts an item for: "language=vi"; empty for a rule on all items together."""
    return f"{rule.each}={item.slices.get(rule.each, '')}" if rule.each else ""


def text(rule: GateRule) -> str:
    """A rule as people read it: "exact_match not_worse_by 0.02"."""
    (condition,) = (f"{name} {value:g}" for name in CONDITIONS if (value := getattr(rule, name)) is not None)
    of = "" if rule.quantile is None else f" quantile {rule.quantile:g}"
    return f"{rule.metric}{of} {condition}" + (f" for each {rule.each}" if rule.each else "")


def _findings(rule: GateRule, items: Sequence[Item], measured: Measured) -> Iterator[Finding]:
    slices: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        one = item.id in measured.candidate
        if measured.production is not None and one != (item.id in measured.production):
            raise InvalidArgument(
                f"The item '{item.id}' has a score on '{rule.metric}' of only one of the two models.", field="items"
            )
        if one:
            slices[slice_of(rule, item)].append(item.id)
    for name, ids in sorted(slices.items()):
        candidate = [measured.candidate[item] for item in ids]
        production = [measured.production[item] for item in ids] if measured.production is not None else []
        if len(ids) < rule.least_items:
            evidence = f"{len(ids)} items, and {rule.least_items} are needed"
            yield Finding(rule=text(rule), slice=name, passed=True, judged=False, evidence=evidence)
        else:
            passed, evidence = _holds(rule, candidate, production, measured.higher_is_better)
            yield Finding(rule=text(rule), slice=name, passed=passed, judged=True, evidence=evidence)


def _holds(
    rule: GateRule, candidate: Sequence[float], production: Sequence[float], higher_is_better: bool
) -> tuple[bool, str]:
    value = _value(rule, candidate)
    if rule.at_least is not None:
        return value >= rule.at_least, f"candidate {value:.4g} on {len(candidate)} items"
    if rule.at_most is not None:
        return value <= rule.at_most, f"candidate {value:.4g} on {len(candidate)} items"
    sign = 1 if higher_is_better else -1
    gain = paired_difference(
        [sign * score for score in candidate],
        [sign * score for score in production],
        confidence=rule.confidence,
        quantile=rule.quantile if rule.quantile is None or sign > 0 else 1 - rule.quantile,
    )
    low, high = sorted((sign * gain.low, sign * gain.high))
    evidence = (
        f"candidate {value:.4g}, production {_value(rule, production):.4g}, difference {sign * gain.mean:+.4g} "
        f"[{low:+.4g}, {high:+.4g}] at {rule.confidence:.0%} on {len(candidate)} items"
    )
    if rule.better_by is not None:
        return gain.low > rule.better_by, evidence
    assert rule.not_worse_by is not None, "the schema requires one of the four"
    return gain.low >= -rule.not_worse_by, evidence


def _value(rule: GateRule, scores: Sequence[float]) -> float:
    return statistics.fmean(scores) if rule.quantile is None else float(np.quantile(scores, rule.quantile))
