"""drift-check: whether what is asked, found, answered and rated differs from what it was before."""

from __future__ import annotations

from pydantic import Field

from genaifactory_pipelines import windows
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import collect, drift
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows.protocol import Surroundings, Task, Workflow


class Parameters(Values):
    """Which windows are compared, and how."""

    since: str = Field(default="7d", description="Judged from when on: an age like 24h or 7d, or a date.")
    until: str = Field(default="", description="Until when, exclusive; empty: until the workflow began.")
    reference_since: str = Field(default="35d", description="Compared with what was from when on.")
    reference_until: str = Field(default="", description="Until when, exclusive; empty: until 'since'.")
    route: str = Field(default="", description="Only this route; empty: every route.")
    model: str = Field(default="minilm", description="The embedding model.")
    least: int = Field(default=100, description="Windows with fewer conversations are refused.")
    false_discovery_rate: float = Field(default=0.01, description="The chance of an alarm where nothing has drifted.")
    needed: int = Field(default=2, description="How many of the last windows must have drifted for an alarm.")
    of: int = Field(default=3, description="How many windows the last ones are.")


async def _reference(given: Parameters, around: Surroundings, context: Context) -> collect.Outputs:
    window = windows.parse(
        given.reference_since,
        given.reference_until or given.since,
        around.created,
        route=given.route,
        options=("reference_since", "reference_until" if given.reference_until else "since"),
    )
    return await drift.reference.run(window, context)


async def _current(given: Parameters, around: Surroundings, context: Context) -> collect.Outputs:
    window = windows.parse(given.since, given.until, around.created, route=given.route, options=("since", "until"))
    return await drift.current.run(window, context)


async def _drift(given: Parameters, around: Surroundings, context: Context) -> drift.Outputs:
    wanted = drift.Parameters(
        model=given.model,
        least=given.least,
        false_discovery_rate=given.false_discovery_rate,
        needed=given.needed,
        of=given.of,
    )
    return await drift.drift.run(wanted, context)


drift_check = Workflow(
    name="drift-check",
    title="Check for drift",
    about="Compares the record of a week with that of the weeks before: questions, searches, answers, ratings. The "
    "verdict is stored with the record; the output 'outcome' is none, warning, or alarm when enough of the last "
    "windows have drifted.",
    parameters=Parameters,
    tasks=(
        Task("reference", "The record of the window that is compared with.", _reference),
        Task("current", "The record of the window that is judged.", _current),
        Task(
            "drift",
            "The comparison.",
            _drift,
            needs=("reference", "current"),
            outputs=("outcome", "drifted", "report_id"),
            report="drift/report.html",
        ),
    ),
    alone_by=("route",),  # each counts the windows before it
    deadline_seconds=2 * 3600,
    schedule="17 3 * * *",
)
