"""Splits: a route whose requests are answered by several arms, each with its share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from genaifactory_common.engine_specs import ModelName, Spec
from genaifactory_common.specs.names import Name
from genaifactory_common.specs.routes import PassageCount, PromptReference, Route

STABLE = "stable"
"""The arm that is the route as it stands; no other may have its name."""
_ROUNDING = 1e-9


def _own(name: str) -> str:
    if name == STABLE:
        raise ValueError(f"'{STABLE}' is the arm that is the route as it stands; choose another name")
    return name


ArmName = Annotated[Name, AfterValidator(_own)]


class Arm(Spec):
    """One way to answer. What it leaves out is as in the route; one that changes nothing is allowed (A/A)."""

    name: ArmName
    share: float = Field(
        ge=0,
        le=1,
        description="Of the units; 0: only its tenants and testers. What all arms leave is the stable arm's.",
    )
    models: tuple[ModelName, ...] | None = Field(
        default=None, min_length=1, description="The model and its fallbacks, in order."
    )
    prompt: PromptReference | None = Field(default=None, description="NAME or NAME@VERSION; no version: the newest.")
    policy: Name | None = Field(default=None, description="Guardrail policy of input and output.")
    passages: PassageCount | None = Field(default=None, description="Passages given to the model.")
    tenants: tuple[Name, ...] = Field(
        default=(), description="Tenants all of whose requests it answers, whatever its share."
    )

    def applied(self, route: Route) -> Route:
        """The route as this arm answers it. The names in it are not checked."""
        changes = {name: getattr(self, name) for name in ("models", "prompt", "policy", "passages")}
        return route.model_copy(update={name: value for name, value in changes.items() if value is not None})


class Split(Spec):
    """The arms of a route."""

    name: Name
    route: ModelName
    unit: Literal["user", "conversation"] = Field(
        default="user",
        description="What keeps its arm: the request's `user`, or its conversation. A request without it takes the "
        "other; one without both is a unit of its own.",
    )
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problem := next(self._problems(), None):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for name in _twice([arm.name for arm in self.arms]):
            yield f"two arms have the name '{name}'"
        for tenant in _twice([tenant for arm in self.arms for tenant in arm.tenants]):
            yield f"the tenant '{tenant}' is listed twice; it can have one arm only"
        total = math.fsum(arm.share for arm in self.arms)
        if total > 1 + _ROUNDING:
            yield f"the shares of the arms add up to {total:g}; they may have 1 at most"

    def arm(self, name: str) -> Arm | None:
        """The arm of this name; None also for the stable one, which is not declared."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all arms, the stable one first."""
        return (STABLE, *(arm.name for arm in self.arms))


def _twice(names: list[str]) -> Iterator[str]:
    return (name for name, count in Counter(names).items() if count > 1)
