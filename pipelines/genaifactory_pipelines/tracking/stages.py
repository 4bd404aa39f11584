"""The stages of a model's versions: the record of who moved which one, when and why, and what follows from it.

MLflow's own stages are deprecated and have no history. The record is a list of changes to which each command adds one;
the stages are worked out from it, so that at any moment at most one version is in Production.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from genaifactory_common.errors import Conflict
from genaifactory_pipelines.values import Values

Stage = Literal["None", "Staging", "Production", "Archived"]
Action = Literal["stage", "promote", "archive", "rollback"]
MAX_TEXT = 1000


class Change(Values):
    """One line of the record."""

    at: AwareDatetime
    by: Annotated[str, Field(min_length=1, max_length=128)]
    """Who approved it."""
    action: Action
    """To Staging, to Production, to Archived, or from the version in Production back to the one before it."""
    version: int
    """That is moved; for "rollback" the one that leaves Production."""
    reason: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    run_id: str
    """The version's run in MLflow."""
    despite_gate: bool = False
    """Whether the run did not pass its gate, and the version was promoted all the same."""


@dataclass
class Stages:
    """What follows from the record."""

    of: dict[int, Stage] = field(default_factory=dict)
    """By version; one that is not there is in None."""
    former: list[int] = field(default_factory=list)
    """Versions that were in Production before, to roll back to; the last first."""

    @property
    def production(self) -> int | None:
        """The version that is in Production."""
        return next((version for version, stage in self.of.items() if stage == "Production"), None)


def after(changes: Iterable[Change]) -> Stages:
    """The stages after all changes, in the order of their times. A change that no longer applies has no effect: two
    commands may have added one at the same time."""
    stages = Stages()
    for change in changes:
        _apply(stages, change)
    return stages


def _apply(stages: Stages, change: Change) -> None:
    version, production = change.version, stages.production
    match change.action:
        case "stage" if version != production:
            stages.of[version] = "Staging"
        case "promote" if version != production:
            if production is not None:
                stages.of[production] = "Archived"
                stages.former.insert(0, production)
            stages.former = [each for each in stages.former if each != version]
            stages.of[version] = "Production"
        case "archive" if version != production:
            stages.of[version] = "Archived"
            stages.former = [each for each in stages.former if each != version]
        case "rollback" if version == production and stages.former:
            stages.of[version] = "Archived"
            stages.of[stages.former.pop(0)] = "Production"
        case _:
            pass


def require_applies(stages: Stages, change: Change) -> None:
    """Raises Conflict for a change that would have no effect, or that its rules forbid."""
    version, production = change.version, stages.production
    if change.action == "rollback":
        if production is None:
            raise Conflict("No version is in Production: there is nothing to roll back from.", field="model")
        if not stages.former:
            raise Conflict(
                f"Version {production} is the first in Production: there is none before it to roll back to.",
                field="model",
            )
    elif version == production:
        if change.action == "promote":
            raise Conflict(f"Version {version} is in Production already.", field="version")
        raise Conflict(
            f"Version {version} is in Production. Promote another one, or roll back, before it is moved.",
            field="version",
        )
    elif change.action == "stage" and stages.of.get(version) == "Staging":
        raise Conflict(f"Version {version} is in Staging already.", field="version")
    elif change.action == "archive" and stages.of.get(version) == "Archived" and version not in stages.former:
        raise Conflict(f"Version {version} is archived already.", field="version")
