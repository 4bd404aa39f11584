"""gate: the rules of a gate of factory.yaml, applied to what was evaluated."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs import Factory, Gate
from genaifactory_pipelines.evaluation import golden, journal, registry
from genaifactory_pipelines.evaluation.gate import (
    Measured,
    Verdict,
    judge,
    require_no_comparison,
    slice_of,
    text,
)
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Item, Setup
from genaifactory_pipelines.evaluation.scoring import judged
from genaifactory_pipelines.reports import Report
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import evaluate
from genaifactory_pipelines.values import Values

REPORT = "report.html"


class Parameters(Values):
    """What has to be fulfilled."""

    gate: Gate


async def _gate(parameters: Parameters, context: Context, folder: Path) -> Verdict:
    """Writes the report. Raises FactoryError for what cannot be judged, which is never a pass."""
    measures = (await asyncio.to_thread(evaluate.evaluate.of, context.run)).metrics
    items, measured = await asyncio.to_thread(
        _read,
        context.run / evaluate.evaluate.name / evaluate.SCORES,
        {name: metric.better == "higher" for name, metric in measures.items()},
    )
    verdict = judge(parameters.gate, items, measured)
    await asyncio.to_thread(files.write, folder / REPORT, _report(verdict).encode(), mode=0o644)
    return verdict


def _read(path: Path, higher_is_better: dict[str, bool]) -> tuple[list[Item], dict[str, Measured]]:
    lines = journal.read(path)
    items = [Item(line["item"], messages=(), expected=(), slices=line["slices"]) for line in lines]

    def scores(who: str, metric: str) -> dict[str, float]:
        return {line["item"]: line[who][metric] for line in lines if metric in line[who]}

    compared = bool(lines) and lines[0]["production"] is not None
    return items, {
        name: Measured(scores("candidate", name), scores("production", name) if compared else None, higher)
        for name, higher in higher_is_better.items()
    }


def _report(verdict: Verdict) -> str:
    report = Report(f"Gate {verdict.gate}: {'passed' if verdict.passed else 'not passed'}")
    report.text("The candidate fulfils every rule." if verdict.passed else "A candidate must fulfil every rule.")
    report.table(HEADER, rows(verdict))
    return report.html()


HEADER = ("verdict", "rule", "slice", "evidence")
"""Of a table of `rows`."""


def rows(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    """What each rule says, for a table; those that were not passed come first."""
    return [
        (
            ("passed" if finding.passed else "not passed") if finding.judged else "not judged",
            finding.rule,
            finding.slice or "all",
            finding.evidence,
        )
        for finding in sorted(verdict.findings, key=lambda each: each.passed)
    ]


def named(factory: Factory, name: str, *, compared: bool) -> Gate:
    """The gate of factory.yaml that is called so. Raises InvalidArgument, also for a rule that could not be judged.

    compared: whether there is a candidate beside production.
    """
    found = factory.gate(name)
    if found is None:
        names = ", ".join(each.name for each in factory.gates) or "none"
        raise InvalidArgument(f"There is no gate '{name}' in factory.yaml; there are: {names}.", field="gate")
    registry.require_known(found)
    if not compared:
        require_no_comparison(found)
    return found


def require_enough(gate: Gate, path: Path, setup: Setup) -> None:
    """Raises InvalidArgument for a rule that no answers could be judged by, before work of hours. Blocks.

    path: the golden set. setup: what it will be asked with.

    Raises InvalidDataset for a golden set with bad lines.
    """
    items = registry.with_suites(golden.read(path), registry.needed(gate))
    evaluators = registry.make_evaluators()
    for index, rule in enumerate(gate.rules):
        evaluator = evaluators[rule.metric]
        asked = [item for item in items if item.suite == evaluator.suite]
        most = max(Counter(slice_of(rule, item) for item in judged(evaluator, asked, setup)).values(), default=0)
        if most < rule.least_items:
            others = Counter(reason for item in asked if (reason := evaluator.excludes(item, setup)))
            raise InvalidArgument(
                f"{path} has {most:,} questions{' that count' if others else ''}"
                f"{f' of one {rule.each}' if rule.each else ''}"
                f"{f' for the suite {evaluator.suite}' if evaluator.suite != GOLDEN else ''}, and "
                f"{rule.least_items:,} are needed for the rule '{text(rule)}' of the gate '{gate.name}'"
                f"{''.join(f'; {count:,} others {reason}' for reason, count in others.items())}. Add questions, lower "
                "its least_items, or take a gate without the rule.",
                field=f"gates[{gate.name}].rules[{index}].{'least_items' if most else 'metric'}",
            )


gate = Step("gate", Parameters, Verdict, _gate, needs=(evaluate.evaluate,))
