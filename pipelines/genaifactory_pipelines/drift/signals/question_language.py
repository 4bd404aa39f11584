"""The languages of the questions."""

from __future__ import annotations

from typing import Literal

from genaifactory_common import language
from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class QuestionLanguage:
    """Vietnamese, English, or undetected, as the platform detects them."""

    name = "question_language"
    group: Literal["inputs"] = "inputs"
    effect = effects.PSI

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.names("languages of questions", _languages(reference), _languages(current))


def _languages(window: Window) -> list[str]:
    return [language.nearest(each.question) or "undetected" for each in window.independent if each.question]


make = QuestionLanguage
