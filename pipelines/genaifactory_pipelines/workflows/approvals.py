"""A person's approval of a candidate that has passed a gate: the pause, and the task that keeps what was decided."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

from pydantic import Field

from genaifactory_common import files
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.workflows.protocol import Approval, Decision, Surroundings, Task

FILE = "approval.json"
"""What was decided, in the run's folder."""
Wanted = Literal["required", "none"]
LONGEST_SECONDS = 2 * 86_400
"""Of a pause: a workflow's deadline has room for it beside its tasks."""


class Parameters(Protocol):
    """Of a workflow with an approval."""

    @property
    def approval(self) -> Wanted:
        """Whether a person decides."""
        ...


def wanted(default: Wanted) -> Any:
    """The field `approval` of a workflow's parameters."""
    return Field(default=default, description="Whether a person decides on a candidate that has passed the gate.")


def seconds() -> Any:
    """The field `approval_seconds` of a workflow's parameters."""
    return Field(
        default=86_400,
        ge=0,
        le=LONGEST_SECONDS,
        description="How long the workflow waits for that, at most two days; then the answer is no.",
    )


def tasks(gate: str) -> tuple[Approval, Task[Any]]:
    """The pause after the task of a gate, and the task `decide` after it."""
    pause = Approval(
        "approve",
        "Whether the candidate that has passed the gate is wanted. The report of the gate has the evidence.",
        needs=(gate,),
        required_by="approval",
        seconds_parameter="approval_seconds",
    )
    decide: Task[Any] = Task(
        "decide",
        "What was decided, on record; a refusal ends the workflow.",
        decided,
        needs=(pause.name,),
        outputs=("decision", "reason"),
        not_passed=Decision.refusal,
        approval=pause.name,
    )
    return pause, decide


async def decided(given: Parameters, around: Surroundings, context: Context) -> Decision:
    """Stores what was decided beside the steps. Raises OSError."""
    decision = around.decision if given.approval == "required" else Decision(decision="approve", reason="not required")
    text = f"{decision.model_dump_json(indent=2)}\n"
    await asyncio.to_thread(files.write, around.run / FILE, text.encode())
    return decision
