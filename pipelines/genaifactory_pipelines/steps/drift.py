"""drift: whether what is asked, found, answered and rated in a window differs from a reference window."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import files
from genaifactory_common.errors import InvalidArgument, PermissionDenied, Unimplemented
from genaifactory_pipelines import curation
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift import embeddings, record, window
from genaifactory_pipelines.drift.protocol import LEAST_VALUES, Window
from genaifactory_pipelines.drift.registry import make_signals
from genaifactory_pipelines.drift.verdict import Finding, Outcome, Verdict, judge
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.reports import Report, bars
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import collect
from genaifactory_pipelines.values import Values

VERDICT = "verdict.json"
REPORT = "report.html"

reference = replace(collect.collect, name="reference")
"""Collects the window that is compared with."""
current = replace(collect.collect, name="current")
"""Collects the window that is judged."""


class Parameters(Values):
    """How two windows are compared."""

    model: str = "minilm"
    """The embedding model."""
    questions: int = Field(default=1_000, ge=LEAST_VALUES, le=5_000)
    """The most questions of a window that are embedded, drawn by lot; their comparison takes time with the square."""
    least: int = Field(default=100, ge=LEAST_VALUES)
    """Conversations of a window; fewer are refused."""
    false_discovery_rate: float = Field(default=0.01, ge=0.005, lt=0.5)
    """The chance of an alarm where nothing has drifted. Lower ones would need more permutations."""
    store: bool = True
    """Whether monitor stores the verdict; the key needs the permission `evaluate` for it."""
    needed: int = Field(default=1, ge=1)
    of: int = Field(default=1, ge=1, le=100)
    """It is an alarm when `needed` of the last `of` windows have drifted, of those that monitor has stored."""

    @model_validator(mode="after")
    def _can_be_an_alarm(self) -> Self:
        if self.needed > self.of:
            raise ValueError("'needed' must be at most 'of'")
        if self.of > 1 and not self.store:
            raise ValueError("'of' must be 1 where the verdict is not stored")
        return self


class Outputs(Values):
    """The verdict in short."""

    drifted: bool
    by: tuple[str, ...]
    """The signals that drifted."""
    not_judged: tuple[str, ...]
    """The signals for which a window had too few values."""
    outcome: Outcome
    report_id: str
    """Of the report that monitor has stored; empty: none."""


async def _drift(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Writes the verdict and the report. Raises FactoryError."""
    _require_installed()
    wanted = [await asyncio.to_thread(_wanted, context.run, step) for step in (reference, current)]
    if parameters.store and any(each.model for each in wanted):
        raise InvalidArgument("A verdict on one model of a route is not stored: do not store it.", field="store")
    recorded = [await asyncio.to_thread(_answers, context.run, step) for step in (reference, current)]
    window.require_apart(*recorded)
    for step, found in zip((reference, current), recorded, strict=True):
        window.require_enough(step.name, found, parameters.least)
    asked = [window.sample(window.independent(found), parameters.questions) for found in recorded]
    texts = {each.question for part in asked for each in part}
    with context.progress.counting("drift: questions embedded", len(texts)) as report:
        vectors = await embeddings.of(sorted(texts), context.gateway, parameters.model, folder, report)
    windows = [window.make(found, part, vectors) for found, part in zip(recorded, asked, strict=True)]
    context.progress.line(f"drift: comparing {len(recorded[1]):,} interactions with {len(recorded[0]):,}")
    verdict = await asyncio.to_thread(_judged, windows, parameters.false_discovery_rate)
    report_id = ""
    if parameters.store:
        both = [record.Window(each.start, each.end, each.route) for each in wanted]
        stored = await _stored(
            context.gateway, record.report(verdict, *both, needed=parameters.needed, of=parameters.of)
        )
        report_id = stored.report_id
        with_others = {"outcome": record.OUTCOMES[stored.verdict], "windows_drifted": stored.drifted}
        verdict = verdict.model_copy(update=with_others)
    text = f"{verdict.model_dump_json(indent=2)}\n"
    await asyncio.to_thread(files.write, folder / VERDICT, text.encode())
    await asyncio.to_thread(files.write, folder / REPORT, _report(verdict, windows[1]).encode())
    return Outputs(
        drifted=verdict.drifted,
        by=verdict.by,
        not_judged=tuple(each.signal for each in verdict.findings if not each.judged),
        outcome=verdict.outcome,
        report_id=report_id,
    )


def _require_installed() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise Unimplemented("The drift check needs genaifactory-pipelines[drift] installed here, as `make sync` does.")


def _answers(run: Path, step: Step[collect.Parameters, collect.Outputs]) -> list[Interaction]:
    return window.answers(curation.interactions(run / step.name / collect.FILE))


def _judged(windows: Sequence[Window], false_discovery_rate: float) -> Verdict:
    return judge(make_signals(), *windows, false_discovery_rate=false_discovery_rate)


def _wanted(run: Path, step: Step[collect.Parameters, collect.Outputs]) -> collect.Parameters:
    return collect.Parameters.model_validate(step.attempt(run).parameters)


async def _stored(gateway: Gateway, report: monitor_pb2.DriftReport) -> monitor_pb2.DriftReport:
    try:
        return await gateway.record_drift(report)
    except PermissionDenied as error:
        raise PermissionDenied(
            f"The verdict cannot be stored: {error.message} Give a key that has it, or do not store the verdict "
            "(--no-store).",
            field="store",
        ) from None


def _report(verdict: Verdict, judged: Window) -> str:
    report = Report("Drift", f"{verdict.current.first:%Y-%m-%d %H:%M} to {verdict.current.last:%Y-%m-%d %H:%M} UTC")
    report.text(f"Drifted by: {', '.join(verdict.by)}." if verdict.drifted else "No signal has drifted.")
    report.text(f"Verdict, with the windows before: {verdict.outcome}.")
    report.heading("Windows")
    report.table(
        ("window", "first question", "last question", "interactions", "conversations", "questions embedded"),
        [
            (
                name,
                f"{each.first:%Y-%m-%d %H:%M}",
                f"{each.last:%Y-%m-%d %H:%M}",
                *(f"{count:,}" for count in (each.interactions, each.conversations, each.questions)),
            )
            for name, each in ((reference.name, verdict.reference), (current.name, verdict.current))
        ],
    )
    report.heading("Signals")
    report.table(
        ("of", "signal", "drifted", "effect", "drift from", "p-value", "adjusted", "what was measured", "certain at"),
        [_row(finding) for finding in verdict.findings],
    )
    report.heading("Effect, in multiples of the least that is drift")
    report.drawing(bars({each.signal: round(each.multiples, 2) for each in verdict.findings if each.judged}))
    report.heading("Questions that show the difference")
    report.table(("signal", "request", "question"), _typical(verdict.findings, judged.asked))
    return report.html()


def _row(finding: Finding) -> tuple[str, ...]:
    if not finding.judged:
        return finding.group, finding.signal, "not judged", "", "", "", "", finding.sentence, ""
    return (
        finding.group,
        finding.signal,
        "yes" if finding.drifted else "no",
        f"{finding.effect_name} {finding.effect:.3f}",
        f"{finding.least_effect:g}",
        f"{finding.p_value:.2g}",
        f"{finding.adjusted:.2g}",
        finding.sentence,
        f"{finding.detected:%Y-%m-%d %H:%M}" if finding.detected else "",
    )


def _typical(findings: Sequence[Finding], asked: Sequence[Interaction]) -> list[tuple[str, str, str]]:
    questions: Mapping[str, str] = {each.request_id: each.question for each in asked}
    return [(each.signal, name, questions[name]) for each in findings if each.drifted for name in each.typical]


drift = Step("drift", Parameters, Outputs, _drift, needs=(reference, current))
