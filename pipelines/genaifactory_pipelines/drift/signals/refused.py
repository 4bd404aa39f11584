"""Answers that are refusals."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class Refused:
    """Whether an answer is a refusal, since the passages do not hold one."""

    name = "refused"
    group: Literal["outputs"] = "outputs"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.shares("answers", "that are refusals", _refused(reference), _refused(current))


def _refused(window: Window) -> list[bool]:
    return [each.refused for each in window.independent if each.outcome == "answered"]


make = Refused
