"""Searches that found nothing."""

from __future__ import annotations

from typing import Literal

from genaifactory_pipelines.drift import comparisons, effects
from genaifactory_pipelines.drift.protocol import Evidence, Window


class NothingFound:
    """Whether a search found no passage."""

    name = "nothing_found"
    group: Literal["retrieval"] = "retrieval"
    effect = effects.COHENS_H

    def measure(self, reference: Window, current: Window) -> Evidence:
        """See Signal."""
        return comparisons.shares("searches", "without a passage", _found_nothing(reference), _found_nothing(current))


def _found_nothing(window: Window) -> list[bool]:
    return [not each.passages for each in window.independent if each.index_version]


make = NothingFound
