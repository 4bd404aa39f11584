"""The routes that are asked."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class Route:
    """Which route of factory.yaml was asked."""

    name = "route"
    group: Literal["inputs"] = "inputs"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.names("routes", *([each.route for each in it.independent] for it in (reference, current)))


make = Route
