"""Requests that the guardrails blocked."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class Blocked:
    """Whether a question or its answer was blocked."""

    name = "blocked"
    group: Literal["outputs"] = "outputs"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.shares("requests", "that were blocked", _blocked(reference), _blocked(current))


def _blocked(window: Window) -> list[bool]:
    return [each.outcome == "blocked" for each in window.independent]


make = Blocked
