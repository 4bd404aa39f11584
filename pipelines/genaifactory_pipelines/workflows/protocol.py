"""What a workflow is made of: typed parameters, tasks in a pod each, an approval between them.

A workflow is data: `manifests` writes Argo's WorkflowTemplate of it, and `pod` runs one of its tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.values import Values

Given = TypeVar("Given", bound=Values)
Image = Literal["tools", "train"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,7}")


class Decision(Values):
    """What a person decided, and why."""

    decision: str
    """approve or refuse; nobody: none was made in time."""
    reason: str

    def refusal(self) -> str:
        """Why the workflow ends here; empty where it was approved."""
        if self.decision == "approve":
            return ""
        if self.decision == NOBODY.decision:
            return "Nobody has approved it in time."
        return f"It was refused: {self.reason or 'no reason was given'}."


NOBODY = Decision(decision="nobody", reason="")


def text(value: object) -> str:
    """A value as Argo has it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def names(given: str) -> list[str]:
    """The names of a parameter that holds several, with commas."""
    return [name.strip() for name in given.split(",") if name.strip()]


def not_passed(verdict: Verdict) -> str:
    """Why a workflow fails at a gate; empty where it was passed."""
    if verdict.passed:
        return ""
    found = "; ".join(each.what for each in verdict.failed())
    return f"The gate '{verdict.gate}' was not passed: {found}."


@dataclass(frozen=True)
class Surroundings:
    """What the pods of one run of a workflow share."""

    name: str
    """Of the run, unique in the namespace."""
    created: datetime
    """When the run began: the same for a pod that is started again."""
    volume: Path
    factory_file: Path
    decision: Decision = NOBODY
    """What came of the approval before the task."""
    status: str = ""
    """How the workflow ended, for its last task: Succeeded, Failed, Error."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.volume / "runs" / self.name

    def input(self, name: str, parameter: str) -> Path:
        """A file that a person has put on the volume. Raises InvalidArgument for a name that leads elsewhere."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"'{name}' is no name of a file below the volume's folder 'inputs', such as golden.jsonl.",
                field=parameter,
            )
        return self.volume / "inputs" / name

    def factory(self) -> specs.Factory:
        """The factory.yaml that is in force. Blocks. Raises InvalidConfiguration."""
        return specs.load(self.factory_file)


@dataclass(frozen=True)
class Task(Generic[Given]):
    """What one pod does: a step, with parameters made of the workflow's."""

    name: str
    about: str
    work: Callable[[Given, Surroundings, Context], Awaitable[Values]]
    """Returns the step's outputs. Raises FactoryError. Done again where a pod was lost, it goes on or does nothing."""
    needs: tuple[str, ...] = ()
    """Tasks, or the approval, that must have succeeded."""
    outputs: tuple[str, ...] = ()
    """Fields and properties of the step's outputs that people and other workflows see."""
    report: str = ""
    """Of the step, in the run's folder."""
    not_passed: Callable[[Any], str] = field(default=lambda outputs: "")
    """Of the outputs: why the workflow fails here, though the step has done its work; empty: it goes on."""
    image: Image = "tools"
    deadline_seconds: int = 3600
    """Of an attempt."""
    approval: str = ""
    """The approval whose decision it gets."""
    gpu: bool = False
    """Whether it takes one of the GPUs that the installation shares among workflows, where it has any."""
    mlflow: bool = False
    """Whether it needs MLflow. An installation without one leaves it out, so that no other task may need it."""


@dataclass(frozen=True)
class Approval:
    """A pause until a person decides."""

    name: str
    about: str
    needs: tuple[str, ...]
    required_by: str
    """The workflow's parameter that is `required` or `none`."""
    seconds_parameter: str
    """The workflow's parameter that says how long it waits; then the answer is no."""


@dataclass(frozen=True)
class Workflow(Generic[Given]):
    """A workflow."""

    name: str
    title: str
    about: str
    parameters: type[Given]
    tasks: tuple[Task[Given] | Approval, ...]
    alone_by: tuple[str, ...] | None = None
    """Runs with the same values of these parameters wait for each other; None: all may run at once."""
    finish: Task[Given] | None = None
    """Runs at the end in any case."""
    deadline_seconds: int = 6 * 3600
    schedule: str = ""
    """When it is started by itself, as cron writes it, unless the installation says otherwise; empty: never."""
    suspended: bool = False
    """Whether the schedule has to be switched on."""

    def task(self, name: str) -> Task[Given] | None:
        """The task of a pod."""
        every = [*self.tasks, *([self.finish] if self.finish else [])]
        return next((each for each in every if isinstance(each, Task) and each.name == name), None)
