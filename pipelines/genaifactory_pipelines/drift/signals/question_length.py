"""The length of the questions."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class QuestionLength:
    """Characters of the user's last message."""

    name = "question_length"
    group: Literal["inputs"] = "inputs"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.numbers("lengths of questions", _lengths(reference), _lengths(current))


def _lengths(window: Window) -> list[float]:
    return [float(len(each.question)) for each in window.independent if each.question]


make = QuestionLength
