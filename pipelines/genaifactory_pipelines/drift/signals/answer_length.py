"""The length of the answers."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class AnswerLength:
    """Characters of an answer, refusals left out: how many there are of them is a signal of its own."""

    name = "answer_length"
    group: Literal["outputs"] = "outputs"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.numbers("lengths of answers", _lengths(reference), _lengths(current))


def _lengths(window: Window) -> list[float]:
    answered = (each for each in window.independent if each.outcome == "answered" and not each.refused)
    return [float(len(each.output)) for each in answered]


make = AnswerLength
