"""The report of an evaluation."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from genaifactory_pipelines.evaluation.protocol import GOLDEN, Answer, Item
from genaifactory_pipelines.evaluation.scoring import Metric, Scored
from genaifactory_pipelines.reports import Report

_SHOWN = 10
_QUANTILES = (0.5, 0.95)


def html(
    route: str,
    candidate_name: str,
    items: Sequence[Item],
    metrics: Mapping[str, Metric],
    candidate: Scored,
    production: Scored | None,
    judge_kappa: float | None = None,
) -> str:
    """Scores, slices, times, failures and the answers that need a look.

    production: None where it is the candidate. judge_kappa: of the judge and people; None where it is not known.
    """
    report = Report("Evaluation")
    golden = [item for item in items if item.suite == GOLDEN]
    suites = sorted({item.suite for item in items} - {GOLDEN})
    report.text(
        f"Route {route}, {len(golden):,} items of the golden set. Evaluated: {candidate_name}"
        + (", beside production." if production is not None else ".")
    )
    who = {"candidate" if production is not None else "production": candidate}
    if production is not None:
        who["production"] = production
    report.heading("Scores")
    report.table(("metric", "better", "items", *who, "difference", "95 % interval"), [*map(_row, metrics.items())])
    if judge_kappa is not None:
        report.text(f"The judge and people agree with a kappa of {judge_kappa:.2f}; 0 is chance, 1 full agreement.")
    report.heading("Scores by slice")
    for suite in (GOLDEN, *suites):
        judged = [name for name, metric in metrics.items() if metric.suite == suite]
        rows = _slices([item for item in items if item.suite == suite], judged, list(who.values()))
        report.table(("slice", "items", *judged), rows)
    report.heading("Seconds")
    answers = {name: [scored.answers[item.id] for item in golden] for name, scored in who.items()}
    report.table(("", "first text p50", "p95", "whole answer p50", "p95"), [_times(*each) for each in answers.items()])
    report.heading("Not answered")
    report.table(("", "why", "items"), [row for each in answers.items() for row in _failures(*each)])
    worst_of = "token_f1" if "token_f1" in metrics else next(iter(metrics), "")
    if production is not None:
        report.heading(f"Where the candidate is worst against production ({worst_of})")
    else:
        report.heading(f"The worst answers ({worst_of})")
    columns = ("item", "question", "expected", *who, "score")
    report.table(columns, _worst(golden, worst_of, metrics, candidate, production))
    for suite in suites:
        asked = [item for item in items if item.suite == suite]
        for name in (name for name, metric in metrics.items() if metric.suite == suite):
            report.heading(f"The worst answers of the suite {suite} ({name})")
            report.table(columns[:-1], _at_fault(asked, name, metrics[name], candidate, production))
    return report.html()


def _row(entry: tuple[str, Metric]) -> tuple[str, ...]:
    name, metric = entry
    candidate, production, *compared = metric.shown()
    means = (candidate,) if metric.production is None else (candidate, production)
    return (name, metric.better, f"{metric.items:,}", *means, *compared)


def _slices(items: Sequence[Item], metrics: Sequence[str], who: Sequence[Scored]) -> list[tuple[str, ...]]:
    slices: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        for kind, value in item.slices.items():
            slices[f"{kind} = {value or 'unknown'}"].append(item.id)

    def mean(scored: Scored, metric: str, ids: Sequence[str]) -> str:
        values = [scored.scores[metric][item] for item in ids if item in scored.scores[metric]]
        return f"{statistics.fmean(values):.3g}" if values else "none"

    return [
        (name, f"{len(ids):,}", *(" / ".join(mean(scored, metric, ids) for scored in who) for metric in metrics))
        for name, ids in sorted(slices.items())
    ]


def _times(who: str, answers: Sequence[Answer]) -> tuple[str, ...]:
    answered = [answer for answer in answers if answer.text]
    measures: tuple[Callable[[Answer], float], ...] = (lambda a: a.first_token_seconds, lambda a: a.seconds)
    if not answered:
        return (who, *("none" for _ in measures for _ in _QUANTILES))
    values = (np.quantile([measure(answer) for answer in answered], _QUANTILES) for measure in measures)
    return (who, *(f"{value:.3f}" for quantiles in values for value in quantiles))


def _failures(who: str, answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    reasons = Counter(
        reason
        for answer in answers
        if (reason := "blocked" if answer.blocked else "refused" if answer.refused else answer.error)
    )
    return [(who, reason, f"{count:,}") for reason, count in sorted(reasons.items())]


def _worst(
    items: Sequence[Item], name: str, metrics: Mapping[str, Metric], candidate: Scored, production: Scored | None
) -> list[tuple[str, ...]]:
    """The items with the smallest score, or the greatest loss against production; none that lost nothing."""
    if name not in metrics:
        return []
    sign = 1 if metrics[name].better == "higher" else -1
    found: list[tuple[float, Item]] = []
    for item in items:
        score = candidate.scores[name].get(item.id)
        before = 0.0 if production is None else production.scores[name].get(item.id)
        if score is None or before is None:
            continue
        change = sign * (score - before)
        if production is None or change < 0:
            found.append((change, item))
    found.sort(key=lambda each: (each[0], each[1].id))
    return [
        (
            *_answered(item, candidate, production),
            f"{change:+.3g}" if production is not None else f"{sign * change:.3g}",
        )
        for change, item in found[:_SHOWN]
    ]


def _at_fault(
    items: Sequence[Item], name: str, metric: Metric, candidate: Scored, production: Scored | None
) -> list[tuple[str, ...]]:
    """The items of a suite on which the candidate's scores are worst, without those that are as good as any."""
    sign = 1 if metric.better == "higher" else -1
    scores = {item.id: sign * candidate.scores[name][item.id] for item in items if item.id in candidate.scores[name]}
    best = max(scores.values(), default=0.0)
    worst = sorted((item for item in items if scores.get(item.id, best) < best), key=lambda item: scores[item.id])
    return [_answered(item, candidate, production) for item in worst[:_SHOWN]]


def _answered(item: Item, candidate: Scored, production: Scored | None) -> tuple[str, ...]:
    shown = (candidate, *([production] if production is not None else []))
    expected = " | ".join(item.expected)
    return (item.id, item.question, expected, *(scored.answers[item.id].shown for scored in shown))
