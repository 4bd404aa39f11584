"""The outcome of a scan: findings, and the verdict over them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Action(IntEnum):
    """What to do about a finding; a stronger action is greater. The numbers are those of types.v1.Action."""

    ALLOW = 1
    MASK = 2
    BLOCK = 3


class Direction(IntEnum):
    """To a model or from it. The numbers are those of types.v1.Direction."""

    INPUT = 1
    OUTPUT = 2


@dataclass(frozen=True)
class Finding:
    """An entity in a text, by position in code points; never the text itself."""

    entity: str
    start: int
    end: int
    score: float
    action: Action
    scanner: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of a scan that ran to the end, or to the finding that blocks."""

    action: Action
    findings: tuple[Finding, ...]
    scanners: tuple[str, ...]
    scanned_characters: int
    """In code points."""


def resolve(overlapping: list[Finding]) -> list[Finding]:
    """One finding for each span: of the strongest's entity, covering all that mask or block."""
    enforced = [finding for finding in overlapping if finding.action is not Action.ALLOW]
    if not enforced:
        return [max(overlapping, key=_strength)]
    resolved: list[Finding] = []
    for group in clusters(enforced):
        strongest = max(group, key=_strength)
        end = max(finding.end for finding in group)
        resolved.append(
            Finding(strongest.entity, group[0].start, end, strongest.score, strongest.action, strongest.scanner)
        )
    return resolved


def clusters(findings: list[Finding]) -> list[list[Finding]]:
    """Findings by position, in groups of those that overlap."""
    groups: list[list[Finding]] = []
    end = -1
    for finding in sorted(findings, key=lambda f: (f.start, f.end, f.entity)):
        if finding.start < end:
            groups[-1].append(finding)
        else:
            groups.append([finding])
        end = max(end, finding.end)
    return groups


def _strength(finding: Finding) -> tuple[Action, float, int, str]:
    return finding.action, finding.score, finding.end - finding.start, finding.entity
