"""Guardrail rules that were enforced on a request, from its record: rule, direction and action; never the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2

_ENFORCED = {types_pb2.ACTION_MASK: "masked", types_pb2.ACTION_BLOCK: "blocked"}
_DIRECTIONS = {types_pb2.DIRECTION_INPUT: "in", types_pb2.DIRECTION_OUTPUT: "out"}


class Rule(NamedTuple):
    """A rule that was enforced."""

    action: str
    """"masked" or "blocked"."""
    direction: str
    """"in": on the input; "out": on the output."""
    entity: str
    """Entity type of the finding, such as EMAIL_ADDRESS; for a block without a finding, the reason of the refusal."""
    policy: str


@dataclass(frozen=True)
class Enforced:
    """A rule on one request."""

    rule: Rule
    findings: int
    """Number of findings; 0 for a block without one."""


def enforced(record: monitor_pb2.Interaction) -> list[Enforced]:
    """Rules enforced on a request, blocks first; empty when everything was allowed."""
    found: Counter[Rule] = Counter()
    for verdict in record.verdicts:
        direction = _DIRECTIONS.get(verdict.direction, "")
        for finding in verdict.findings:
            if action := _ENFORCED.get(finding.action):
                found[Rule(action, direction, finding.entity_type, verdict.policy)] += 1
        if verdict.action == types_pb2.ACTION_BLOCK and not any(rule.action == "blocked" for rule in found):
            found[Rule("blocked", direction, "", verdict.policy)] += 0
    if record.outcome == monitor_pb2.OUTCOME_BLOCKED and not any(rule.action == "blocked" for rule in found):
        found[Rule("blocked", "", record.error_reason, "")] += 0
    return [Enforced(rule, count) for rule, count in sorted(found.items())]


def summary(records: Iterable[Sequence[Enforced]]) -> list[tuple[Rule, int, int]]:
    """Each rule with its number of requests and of findings, the most frequent first."""
    requests: Counter[Rule] = Counter()
    findings: Counter[Rule] = Counter()
    for items in records:
        for item in items:
            requests[item.rule] += 1
            findings[item.rule] += item.findings
    return sorted(
        ((rule, count, findings[rule]) for rule, count in requests.items()), key=lambda row: (-row[1], row[0])
    )


def in_words(items: Sequence[Enforced]) -> str:
    """On one line: "blocked in: PROMPT_INJECTION; masked out: EMAIL_ADDRESS x2"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        name = item.rule.entity or item.rule.policy
        groups.setdefault(item.rule[:2], []).append(f"{name} x{item.findings}" if item.findings > 1 else name)
    return "; ".join(f"{' '.join(filter(None, key))}: {', '.join(names)}" for key, names in groups.items())
