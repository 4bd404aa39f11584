"""retrain: the improvement loop on a cluster, a pod for each step, with a person's approval of what passed the gate."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import retrain as dag
from genaifactory_pipelines import summary
from genaifactory_pipelines.datasets.records import Unrated
from genaifactory_pipelines.step import RESULT, Context, Step
from genaifactory_pipelines.steps import curate, evaluate, gate, load, record, register, train
from genaifactory_pipelines.tracking import client
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows import approvals
from genaifactory_pipelines.workflows.protocol import (
    Approval,
    Decision,
    Surroundings,
    Task,
    Workflow,
    names,
    not_passed,
)

_WITH_CANDIDATE = (evaluate.evaluate, gate.gate)
"""Steps that need the adapter at the model server, or after which people try it or release it."""
_WITH_REPORT = {each.name for each in (curate.curate, train.train, evaluate.evaluate, gate.gate)}


def _as_in_dag(name: str, **changed: Any) -> Any:
    """The field of a parameter that the DAG has as well."""
    known = dag.Parameters.model_fields[name]
    default = {} if known.is_required() else {"default": known.default}
    return Field(**{"description": known.description, **default, **changed})


class Parameters(Values):
    """What a run is given. Files are in the volume's folder inputs."""

    route: str = _as_in_dag("route")
    learn_from: str = _as_in_dag("learn_from", default="")
    base: str = Field(min_length=1, description="The base to train on: a folder as the pods see it, below /models.")
    golden: str = _as_in_dag("golden", default="golden.jsonl")
    gate: str = _as_in_dag("gate", default="default")
    since: str = _as_in_dag("since")
    until: str = _as_in_dag("until")
    examples: str = _as_in_dag("examples", default="")
    policy: str = _as_in_dag("policy")
    unrated: Unrated = _as_in_dag("unrated")
    least_examples: int = _as_in_dag("least_examples")
    served_as: str = _as_in_dag("served_as")
    training: str = Field(default="{}", description="A JSON object of the training's parameters: docs/training.md.")
    name: str = _as_in_dag("name")
    source: str = _as_in_dag("source")
    at_once: int = _as_in_dag("at_once")
    texts: bool = _as_in_dag("texts")
    model: str = _as_in_dag("model", default="")
    approval: approvals.Wanted = approvals.wanted("required")
    approval_seconds: int = approvals.seconds()


async def _plan(given: Parameters, around: Surroundings, context: Context) -> dag.Plan:
    return await asyncio.to_thread(_planned, given, around)


def _planned(given: Parameters, around: Surroundings) -> dag.Plan:
    try:
        training = json.loads(given.training)
    except ValueError:
        raise InvalidArgument("'training' must be a JSON object, such as {\"seed\": 1}.", field="training") from None
    own = given.model_dump(exclude={"approval", "approval_seconds", "golden", "examples", "learn_from", "training"})
    wanted = dag.parameters(
        {
            **own,
            "learn_from": names(given.learn_from),
            "golden": around.input(given.golden, "golden"),
            "examples": around.input(given.examples, "examples") if given.examples else None,
            "training": training,
            "tracked": client.is_named(),
            "model": given.model or None,
        }
    )
    return dag.begin(around.run, dag.plan(wanted, around.factory(), around.created))


async def _run(stage: dag.Stage, given: Parameters, around: Surroundings, context: Context) -> Values:
    again = stage.step is register.register and (around.run / load.load.name / RESULT).exists()
    if again or stage.step in _WITH_CANDIDATE:
        await _load(around, context)
    outputs: Values = await stage.step.run(await asyncio.to_thread(_made, stage, around.run), context)
    return outputs


async def _load(around: Surroundings, context: Context) -> None:
    """Again: `finish` has unloaded the candidate of a run that failed, and a retry leaves out tasks that succeeded."""
    stage = _stage(load.load)
    await stage.step.run(await asyncio.to_thread(_made, stage, around.run), context)


def _stage(step: Step[Any, Any]) -> dag.Stage:
    return next(each for each in dag.STAGES if each.step is step)


async def _decide(given: Parameters, around: Surroundings, context: Context) -> Decision:
    """See approvals. What was approved is loaded when the workflow ends. Raises FactoryError, OSError."""
    decision = await approvals.decided(given, around, context)
    if not decision.refusal():
        await _load(around, context)
    return decision


def _made(stage: dag.Stage, run: Path) -> Values:
    plan = dag.stored(run)
    if plan is None:
        raise InvalidArgument(f"{run} has no {dag.PLAN}: the task 'plan' writes it.", field="run")
    return stage.parameters(plan, run)


async def _finish(given: Parameters, around: Surroundings, context: Context) -> Values:
    """Unloads the candidate of a run that has failed, records a run that was judged, and writes its page.

    Raises FactoryError.
    """
    if around.status != "Succeeded":
        await load.withdraw(context, around.factory)
    try:
        if await asyncio.to_thread(_is_to_record, around):
            await _run(_stage(record.record), given, around, context)
    finally:
        with contextlib.suppress(InvalidArgument):  # it has not come as far as the gate
            await asyncio.to_thread(summary.write, around.run, dag.STEPS)
    return Values()


def _is_to_record(around: Surroundings) -> bool:
    """Whether the run was judged, and `register` has not recorded it. A failed run may be one that was judged again."""
    plan = dag.stored(around.run)
    if plan is None or not plan.parameters.tracked or not (around.run / gate.gate.name / RESULT).exists():
        return False
    return around.status != "Succeeded" or not (around.run / register.register.name / RESULT).exists()


def _tasks() -> tuple[Task[Parameters] | Approval, ...]:
    tasks: list[Task[Parameters] | Approval] = [
        Task("plan", "What the run does, after everything that can be wrong with it was checked.", _plan)
    ]
    for stage in dag.STAGES:
        name = stage.step.name
        judged = stage.step is gate.gate
        work: Callable[[Parameters, Surroundings, Context], Awaitable[Values]] = partial(_run, stage)
        tasks.append(
            Task(
                name,
                f"{stage.about[:1].upper()}{stage.about[1:]}.",
                work,
                needs=(tasks[-1].name,),
                outputs=("passed",) if judged else (),
                report=f"{name}/report.html" if name in _WITH_REPORT else "",
                not_passed=not_passed if judged else lambda outputs: "",
                image="train" if stage.step is train.train else "tools",
                deadline_seconds=24 * 3600 if stage.step is train.train else 6 * 3600,
                gpu=stage.step is train.train,
            )
        )
        if judged:
            pause, decide = approvals.tasks(name)
            return (*tasks, pause, replace(decide, work=_decide), _registered(decide.name))
    raise AssertionError("the DAG has a gate")


def _registered(before: str) -> Task[Parameters]:
    """It records the run as well; one that does not come as far is recorded by `finish`."""
    return Task(
        register.register.name,
        "The run in MLflow, and the adapter as a version of a model.",
        partial(_run, _stage(register.register)),
        needs=(before,),
        outputs=tuple(register.Outputs.model_fields),
        deadline_seconds=6 * 3600,
        mlflow=True,
    )


retrain = Workflow(
    name="retrain",
    title="Retrain",
    about="Learns from the record: collects it, makes a dataset, trains an adapter, loads it beside its base, compares "
    "it with production by a gate, and waits for a person's approval. A candidate that is not wanted is unloaded. With "
    "MLflow the run is recorded in any case, and what was approved is registered.",
    parameters=Parameters,
    tasks=_tasks(),
    alone_by=("base",),
    finish=Task(
        "finish",
        "Unloads the candidate of a run that has failed, records the run, and writes its page.",
        _finish,
        report=summary.FILE,
        deadline_seconds=6 * 3600,
    ),
    deadline_seconds=5 * 24 * 3600,
    schedule="11 2 * * 0",
    suspended=True,
)
