"""Requests that failed."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class Failed:
    """Whether a request ended with an error."""

    name = "failed"
    group: Literal["outputs"] = "outputs"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.shares("requests", "that failed", _failed(reference), _failed(current))


def _failed(window: Window) -> list[bool]:
    return [each.outcome == "failed" for each in window.independent]


make = Failed
