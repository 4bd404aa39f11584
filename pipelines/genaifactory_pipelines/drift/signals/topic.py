"""The topics of answers: the document that each cites first, as in datasets."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class Topic:
    """The document that an answer cites first; answers without a citation have no topic."""

    name = "topic"
    group: Literal["inputs"] = "inputs"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.names("topics of answers", _topics(reference), _topics(current))


def _topics(window: Window) -> list[str]:
    return [each.topic for each in window.independent if each.topic]


make = Topic
