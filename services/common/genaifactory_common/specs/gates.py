"""Gates: what a candidate has to fulfil before it may be released."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genaifactory_common.engine_specs import Spec
from genaifactory_common.specs.names import Name

Metric = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""The name of an evaluator's score."""


CONDITIONS = ("not_worse_by", "better_by", "at_least", "at_most")
"""Fields of a rule, of which it has one."""


def least_items_of(quantile: float) -> int:
    """The least items of which one may lie beyond a quantile."""
    return math.ceil(round(1 / min(quantile, 1 - quantile), 6))


class GateRule(Spec):
    """One condition on one metric; every rule of a gate must hold."""

    metric: Metric
    not_worse_by: float | None = Field(
        default=None,
        ge=0,
        description="The candidate is not worse than production by more than this, at the confidence.",
    )
    better_by: float | None = Field(
        default=None, ge=0, description="The candidate is better than production by more than this, at the confidence."
    )
    at_least: float | None = Field(default=None, description="The candidate's mean is this at least.")
    at_most: float | None = Field(default=None, description="The candidate's mean is this at most.")
    quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The condition is on this quantile of the scores (0.95 of seconds), and not on their mean.",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of the interval of a comparison.")
    each: Literal["language", "topic", "length"] | None = Field(
        default=None,
        description="The rule holds for each language, topic or length, and not for all together.",
    )
    least_items: int = Field(default=20, ge=2, description="A slice with fewer items is not judged.")

    @model_validator(mode="after")
    def _has_one_condition(self) -> Self:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of {', '.join(CONDITIONS)}, and has {' and '.join(given) or 'none'}")
        if self.quantile is not None and self.least_items < (needed := least_items_of(self.quantile)):
            raise ValueError(
                f"least_items must be {needed} at least for the quantile {self.quantile:g}: with fewer items only the "
                "greatest or the least of them decides"
            )
        return self

    @property
    def compares(self) -> bool:
        """Whether it compares the candidate with production."""
        return self.not_worse_by is not None or self.better_by is not None


class Gate(Spec):
    """Rules that a candidate has to fulfil."""

    name: Name
    rules: tuple[GateRule, ...] = Field(min_length=1)
