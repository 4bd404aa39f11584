"""What a drift check has measured as the report that monitor stores, which has no text and no ids of requests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_pipelines.drift.verdict import Compared, Finding, Outcome, Verdict


@dataclass(frozen=True)
class Window:
    """What was collected: the interactions of a route, or of all for an empty one, from `start` until before `end`."""

    start: datetime
    end: datetime
    route: str


OUTCOMES: dict[monitor_pb2.DriftVerdict.ValueType, Outcome] = {
    monitor_pb2.DRIFT_VERDICT_NONE: "none",
    monitor_pb2.DRIFT_VERDICT_WARNING: "warning",
    monitor_pb2.DRIFT_VERDICT_ALARM: "alarm",
}


def report(verdict: Verdict, reference: Window, current: Window, *, needed: int, of: int) -> monitor_pb2.DriftReport:
    """The report, without a verdict: that is monitor's, which knows the windows before.

    needed, of: an alarm needs so many drifted windows among the last `of`.
    """
    return monitor_pb2.DriftReport(
        report_id=_id(current),
        route=current.route,
        reference=_window(reference, verdict.reference),
        current=_window(current, verdict.current),
        needed=needed,
        windows=of,
        false_discovery_rate=verdict.false_discovery_rate,
        signals=[_signal(finding) for finding in verdict.findings],
    )


def _id(window: Window) -> str:
    """The same for the same window: judged again, for late ratings or with other parameters, it has one report."""
    what = [window.route, window.start.timestamp(), window.end.timestamp()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _window(asked: Window, compared: Compared) -> monitor_pb2.DriftWindow:
    return monitor_pb2.DriftWindow(
        start_time=_timestamp(asked.start),
        end_time=_timestamp(asked.end),
        interactions=compared.interactions,
        conversations=compared.conversations,
        questions=compared.questions,
    )


def _signal(finding: Finding) -> monitor_pb2.DriftSignal:
    return monitor_pb2.DriftSignal(
        name=finding.signal,
        group=finding.group,
        judged=finding.judged,
        drifted=finding.drifted,
        statistic=finding.statistic,
        p_value=finding.p_value,
        adjusted_p_value=finding.adjusted,
        effect=finding.effect,
        effect_name=finding.effect_name,
        least_effect=finding.least_effect,
        detected_time=_timestamp(finding.detected) if finding.detected else None,
    )


def _timestamp(value: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(value)
    return made
