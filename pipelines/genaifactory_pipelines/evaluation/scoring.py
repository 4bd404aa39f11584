"""Scores of answers by all evaluators, and what they are together."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from genaifactory_common.concurrency import task_group
from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Evaluator, Evidence, Item, Setup
from genaifactory_pipelines.evaluation.statistics import paired_difference
from genaifactory_pipelines.values import Values

Scores = dict[str, dict[str, float]]
"""By metric, then by the item's id; without the items that the metric does not concern."""


@dataclass(frozen=True)
class Scored:
    """Answers with their scores."""

    answers: Mapping[str, Answer]
    """By the item's id."""
    scores: Scores


class Metric(Values):
    """One metric over all items that it concerns."""

    better: str
    """ "higher" or "lower"."""
    suite: str = GOLDEN
    """The suite whose items it judges."""
    items: int
    candidate: float
    """Its mean; of production where there is no candidate."""
    production: float | None = None
    """Its mean."""
    difference: float | None = None
    """Of the means, candidate minus production."""
    low: float | None = None
    """Lower bound of the difference at 95 %."""
    high: float | None = None
    """Upper bound of the difference at 95 %."""

    @property
    def interval(self) -> str:
        """The bounds for people; empty where there are none."""
        return "" if self.low is None else f"[{self.low:+.4g}, {self.high:+.4g}]"

    def shown(self) -> tuple[str, str, str, str]:
        """For people: the candidate's mean, production's, their difference, its interval; empty where there is none."""
        production = "" if self.production is None else f"{self.production:.4g}"
        difference = "" if self.difference is None else f"{self.difference:+.4g}"
        return f"{self.candidate:.4g}", production, difference, self.interval


async def score(
    evaluators: Mapping[str, Evaluator],
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    evidence: Evidence,
    *,
    at_once: int = 4,
    report: Callable[[int], None] = lambda done: None,
) -> Scores:
    """The scores of the answers to all items. Raises FactoryError.

    at_once: items at a time, of one evaluator. report: called with how many scores are done so far.
    """
    scores: Scores = {}
    done = itertools.count(1)
    places = asyncio.Semaphore(at_once)
    for name, evaluator in evaluators.items():

        async def one(item: Item, evaluator: Evaluator = evaluator) -> float:
            async with places:
                found = await evaluator.score(item, answers[item.id], evidence)
            report(next(done))
            return found

        async with task_group() as group:
            tasks = {item.id: group.create_task(one(item)) for item in judged(evaluator, items, evidence.setup)}
        scores[name] = {item: task.result() for item, task in tasks.items()}
    return scores


def judged(evaluator: Evaluator, items: Iterable[Item], setup: Setup) -> list[Item]:
    """The items that get a score."""
    return [item for item in items if item.suite == evaluator.suite and not evaluator.excludes(item, setup)]


def metrics(evaluators: Mapping[str, Evaluator], candidate: Scores, production: Scores | None) -> dict[str, Metric]:
    """Each metric that concerns an item, by its name. production: None where there is no candidate beside it."""
    found: dict[str, Metric] = {}
    for name, evaluator in evaluators.items():
        ids = [item for item in candidate[name] if production is None or item in production[name]]
        if not ids:
            continue
        one = [candidate[name][item] for item in ids]
        metric = Metric(better=evaluator.better, suite=evaluator.suite, items=len(ids), candidate=statistics.fmean(one))
        if production is not None:
            metric = _compared(metric, one, [production[name][item] for item in ids])
        found[name] = metric
    return found


def _compared(metric: Metric, candidate: Sequence[float], production: Sequence[float]) -> Metric:
    mean = statistics.fmean(production)
    changes: dict[str, float] = {"production": mean, "difference": metric.candidate - mean}
    if len(candidate) > 1:
        interval = paired_difference(candidate, production)
        changes |= {"low": interval.low, "high": interval.high}
    return metric.model_copy(update=changes)
