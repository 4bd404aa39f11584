"""The verdict on two windows: which signals differ by more than chance and by enough to matter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.drift.protocol import Evidence, Group, Signal, TooFew, Window
from genaifactory_pipelines.values import Values

Outcome = Literal["none", "warning", "alarm"]
"""What follows: a window that has drifted is a warning until enough of those before it have drifted too."""


class Finding(Values):
    """What a signal says."""

    signal: str
    group: Group
    judged: bool
    """False where a window had too few values: then nothing is said of it, and the numbers are 0 and 1."""
    drifted: bool
    """Significant after the adjustment, and at least the least effect that matters."""
    statistic: float = 0.0
    p_value: float = 1.0
    adjusted: float = 1.0
    """The p-value after Benjamini and Hochberg's procedure over all signals that were judged."""
    effect: float = 0.0
    effect_name: str
    least_effect: float
    """That is drift."""
    multiples: float = 0.0
    """The effect, in multiples of the least; 0 where the windows do not differ at all."""
    sentence: str
    typical: tuple[str, ...] = ()
    """Ids of requests in the current window that show the difference."""
    detected: datetime | None = None
    """Of a signal that drifted: when a change within the current window was certain."""


class Compared(Values):
    """A window that was compared."""

    interactions: int
    conversations: int
    questions: int
    """That were embedded."""
    first: datetime
    last: datetime
    """When the first and the last of its questions were asked."""


class Verdict(Values):
    """On the current window."""

    reference: Compared
    current: Compared
    false_discovery_rate: float
    drifted: bool
    by: tuple[str, ...]
    """The signals that drifted."""
    outcome: Outcome
    """With the windows before it, where the verdict is stored."""
    windows_drifted: int
    """This window and those before it that have drifted."""
    findings: tuple[Finding, ...]


def judge(signals: Sequence[Signal], reference: Window, current: Window, *, false_discovery_rate: float) -> Verdict:
    """The verdict. Blocks, for seconds of CPU.

    Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995: where nothing has drifted, any alarm has at
    most the chance `false_discovery_rate`. Raises InvalidArgument when no signal has enough values.
    """
    from scipy import stats

    measured = [(signal, _measure(signal, reference, current)) for signal in signals]
    p_values = [each.p_value for _, each in measured if isinstance(each, Evidence)]
    if not p_values:
        raise InvalidArgument("No signal has enough values to be judged: take longer windows.", field="current")
    adjusted = iter(stats.false_discovery_control(p_values, method="bh"))
    findings = tuple(
        _finding(signal, each, float(next(adjusted)), false_discovery_rate)
        if isinstance(each, Evidence)
        else _not_judged(signal, each)
        for signal, each in measured
    )
    by = tuple(finding.signal for finding in findings if finding.drifted)
    return Verdict(
        reference=_compared(reference),
        current=_compared(current),
        false_discovery_rate=false_discovery_rate,
        drifted=bool(by),
        by=by,
        outcome="alarm" if by else "none",
        windows_drifted=int(bool(by)),
        findings=findings,
    )


def _measure(signal: Signal, reference: Window, current: Window) -> Evidence | TooFew:
    try:
        return signal.measure(reference, current)
    except TooFew as error:
        return error


def _finding(signal: Signal, evidence: Evidence, adjusted: float, false_discovery_rate: float) -> Finding:
    drifted = adjusted <= false_discovery_rate and signal.effect.multiples(evidence.effect) >= 1
    return Finding(
        signal=signal.name,
        group=signal.group,
        judged=True,
        drifted=drifted,
        statistic=evidence.statistic,
        p_value=evidence.p_value,
        adjusted=adjusted,
        effect=evidence.effect,
        effect_name=signal.effect.name,
        least_effect=signal.effect.least,
        multiples=signal.effect.multiples(evidence.effect),
        sentence=evidence.sentence,
        typical=tuple(evidence.typical),
        detected=evidence.detected if drifted else None,
    )


def _not_judged(signal: Signal, error: TooFew) -> Finding:
    return Finding(
        signal=signal.name,
        group=signal.group,
        judged=False,
        drifted=False,
        effect_name=signal.effect.name,
        least_effect=signal.effect.least,
        sentence=f"Not judged. {error.message}",
    )


def _compared(window: Window) -> Compared:
    times = [each.start_time for each in window.interactions if each.start_time is not None]
    return Compared(
        interactions=len(window.interactions),
        conversations=len(window.independent),
        questions=len(window.asked),
        first=min(times),
        last=max(times),
    )
