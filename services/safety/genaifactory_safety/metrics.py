"""Metrics of the guardrails: verdicts, findings, texts that could not be scanned, and how long scans take."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from prometheus_client import Counter, Histogram

from genaifactory_common import channels, telemetry
from genaifactory_common.errors import FactoryError, Reason
from genaifactory_common.telemetry import LATENCY_BUCKETS
from genaifactory_safety.verdicts import Direction, Verdict

SCANNED = Counter("genaifactory_safety_scanned_characters_total", "Characters scanned.", ["direction"])
VERDICTS = Counter(
    "genaifactory_safety_verdicts_total", "Texts scanned to their end, by verdict.", ["policy", "direction", "action"]
)
FINDINGS = Counter(
    "genaifactory_safety_findings_total", "Findings, by what they are.", ["entity", "direction", "action"]
)
NOT_SCANNED = Counter(
    "genaifactory_safety_not_scanned_total",
    "Texts whose scan failed, ran out of time or was refused under load; none may be used. Alert on it.",
    ["direction", "reason"],
)
SECONDS = Histogram(
    "genaifactory_safety_scan_seconds",
    "Scanning one text: all its pieces, with waits for a thread, without waits for pieces.",
    ["direction"],
    buckets=LATENCY_BUCKETS,
)

# A client cancels at the deadline as well: a cancellation this close to it counts as the deadline.
_DEADLINE_TOLERANCE_SECONDS = 0.05

# Created at 0: Prometheus computes increases, and a series that appears with 1 would hide the first failure.
for _direction in Direction:
    for _reason in (Reason.OVERLOADED, Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.INTERNAL):
        NOT_SCANNED.labels(_direction.name, _reason.value)


class Scanning:
    """The scan of one text; a context manager around each of its steps, which times them and counts a failure."""

    def __init__(self, policy: str, direction: Direction) -> None:
        self._policy = policy
        self._direction = direction.name
        self._seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._seconds += time.perf_counter() - self._started
        if error is None or (reason := _failure_reason(error)) is None:
            return
        NOT_SCANNED.labels(self._direction, reason.value).inc()

    def ended(self, verdict: Verdict) -> None:
        """Counts the outcome, and sets it on the call's span."""
        telemetry.describe(
            {
                "genaifactory.guardrail.policy": self._policy,
                "genaifactory.guardrail.direction": self._direction.lower(),
                "genaifactory.guardrail.action": verdict.action.name.lower(),
                "genaifactory.guardrail.findings": tuple(sorted({finding.entity for finding in verdict.findings})),
            }
        )
        SECONDS.labels(self._direction).observe(self._seconds)
        SCANNED.labels(self._direction).inc(verdict.scanned_characters)
        VERDICTS.labels(self._policy, self._direction, verdict.action.name).inc()
        for finding in verdict.findings:
            FINDINGS.labels(finding.entity, self._direction, finding.action.name).inc()


def _failure_reason(error: BaseException) -> Reason | None:
    """None where the client cancelled: the text is not used."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        remaining = channels.remaining_seconds()
        expired = remaining is not None and remaining < _DEADLINE_TOLERANCE_SECONDS
        return Reason.DEADLINE_EXCEEDED if expired else None
    return error.reason if isinstance(error, FactoryError) else Reason.INTERNAL
