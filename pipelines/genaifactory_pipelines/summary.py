"""The report of a whole run: its steps, dataset, curves, scores and verdict on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genaifactory_common import files
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.reports import Report, bars, lines
from genaifactory_pipelines.step import RESULT, Step, times
from genaifactory_pipelines.steps import curate, evaluate, load, register, train
from genaifactory_pipelines.steps import gate as gating
from genaifactory_pipelines.training import metrics

FILE = "report.html"


def write(run: Path, steps: Sequence[Step[Any, Any]]) -> None:
    """Writes RUN/report.html, of those of the steps that have a result. Blocks. Raises OSError, InvalidArgument."""
    files.write(run / FILE, html(run, steps).encode(), mode=0o644)


def html(run: Path, steps: Sequence[Step[Any, Any]], *, linked: bool = True) -> str:
    """The page. Blocks. Raises OSError, InvalidArgument.

    steps: in their order. linked: with links to the steps' reports, for a page that lies in the run's folder.
    """
    verdict = gating.gate.of(run)
    made, trained, loaded = curate.curate.of(run), train.train.of(run), load.load.of(run)
    report = Report(f"Run {run.resolve().name}: {'passed' if verdict.passed else 'not passed'}", made.version)
    report.text(
        f"The adapter {loaded.name} for {trained.base_model}, trained on {made.train:,} examples, is compared with "
        f"production on {evaluate.evaluate.of(run).items:,} golden items by the gate {verdict.gate}."
    )
    _steps(report, run, steps, linked, verdict)
    _verdict(report, verdict)
    _scores(report, run)
    report.heading("Dataset")
    manifest, _ = dataset.read(run / curate.curate.name / curate.DATASET)
    report.text(f"{sum(manifest.examples.values()):,} examples from {manifest.lineage()}")
    for heading, counts in manifest.tables().items():
        report.text(heading)
        report.drawing(bars(counts))
    _curves(report, run)
    return report.html()


def _steps(report: Report, run: Path, steps: Sequence[Step[Any, Any]], linked: bool, verdict: Verdict) -> None:
    rows, links = [], {}
    for step in steps:
        if not (run / step.name / RESULT).exists():  # it was not asked for
            continue
        if step is register.register and not verdict.passed:  # of a gate before, which was passed
            continue
        started, ended = times(step, run)
        rows.append((step.name, f"{started:%Y-%m-%d %H:%M:%S}", f"{(ended - started).total_seconds():,.1f} s"))
        if linked and (run / step.name / FILE).exists():
            links[f"Report of {step.name}"] = f"{step.name}/{FILE}"
    report.heading("Steps")
    report.text("Times are from the first attempt to the end, in UTC.")
    report.table(("step", "started", "took"), rows)
    if links:
        report.links(links)


def _verdict(report: Report, verdict: Verdict) -> None:
    report.heading(f"Gate {verdict.gate}: {'passed' if verdict.passed else 'not passed'}")
    report.table(gating.HEADER, gating.rows(verdict))


def _scores(report: Report, run: Path) -> None:
    rows = []
    for name, metric in evaluate.evaluate.of(run).metrics.items():
        *means, difference, interval = metric.shown()
        rows.append((name, f"{metric.items:,}", *means, f"{difference} {interval}".rstrip()))
    report.heading("Scores")
    report.table(("metric", "items", "candidate", "production", "difference"), rows)


def _curves(report: Report, run: Path) -> None:
    measured = metrics.read(run / train.train.name / metrics.FILE)
    for stage in train.train.of(run).stages:
        report.heading(f"Training, stage {stage}")
        curves = {each: metrics.series(measured, f"{stage}/{each}_loss") for each in ("train", "validation")}
        report.drawing(lines({f"{each} loss": points for each, points in curves.items()}, x="step"))
