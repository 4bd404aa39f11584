"""What a signal of drift compares, and the protocol that it implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.datasets.records import Interaction
from genaifactory_pipelines.drift.effects import Effect

LEAST_VALUES = 20
"""Of each window that a signal needs; with fewer its test would find next to nothing, and "no drift" would mislead."""

Group = Literal["inputs", "retrieval", "outputs", "quality"]
"""What has drifted: what users ask, what the search finds, what is answered, or how answers are rated."""


@dataclass(frozen=True)
class Window:
    """The interactions of a window of time."""

    interactions: Sequence[Interaction]
    """By time, without those that embedded texts."""
    independent: Sequence[Interaction]
    """One of each conversation, by time: those of one conversation are alike, and tests would count them twice."""
    asked: Sequence[Interaction]
    """Those of the independent ones whose questions were embedded."""
    vectors: NDArray[np.float32]
    """Unit length, a row for each of `asked`."""


@dataclass(frozen=True)
class Evidence:
    """What a signal has measured."""

    statistic: float
    p_value: float
    """The chance of such a statistic between windows of the same traffic."""
    effect: float
    sentence: str
    """The measurement for people, without text of users."""
    typical: Sequence[str] = ()
    """Ids of requests in the current window that show the difference."""
    detected: datetime | None = None
    """When a change within the current window was certain."""


class TooFew(InvalidArgument):
    """A window has too few values for a signal, which is no sign that nothing has drifted."""


class Signal(Protocol):
    """Compares two windows in one respect."""

    @property
    def name(self) -> str:
        """In verdicts and reports: lower case with underscores."""
        ...

    @property
    def group(self) -> Group:
        """What drifts with it."""
        ...

    @property
    def effect(self) -> Effect:
        """The measure of how large a difference is, with the least one that matters."""
        ...

    def measure(self, reference: Window, current: Window) -> Evidence:
        """The evidence of a difference. Blocks. The same windows give the same evidence. Raises TooFew."""
        ...


def require_enough(
    what: str, reference: Sequence[object] | NDArray[np.generic], current: Sequence[object] | NDArray[np.generic]
) -> None:
    """Raises TooFew unless each window has LEAST_VALUES values. what: what they are, in the plural."""
    for window, values in (("reference", reference), ("current", current)):
        if len(values) < LEAST_VALUES:
            raise TooFew(
                f"The {window} window has {len(values)} {what}; {LEAST_VALUES} are needed to judge them.", field=window
            )
