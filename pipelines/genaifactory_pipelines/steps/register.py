"""register: the trained adapter as a version of a model in MLflow, once its gate was passed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from genaifactory_common.errors import Conflict
from genaifactory_common.specs.names import Name
from genaifactory_pipelines.step import Context, Step, times
from genaifactory_pipelines.steps import curate, evaluate, gate, load, record, train
from genaifactory_pipelines.tracking import client, registry, runs
from genaifactory_pipelines.values import Values


class Parameters(Values):
    """What the adapter becomes a version of."""

    model: Name
    """The registered model. It is made where there is none."""
    record: record.Parameters


class Outputs(Values):
    """The version."""

    run_id: str
    """In MLflow."""
    model: str
    version: int
    uri: str
    """By which the model server loads it."""


async def _register(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Records the run, then registers its adapter. Raises FactoryError: Conflict when the gate was not passed."""
    recorded = await record.record.run(parameters.record, context)
    await asyncio.to_thread(_require_passed, context.run, recorded.run_id)
    tracking = await asyncio.to_thread(client.from_environment, context.progress.line)
    trained = await asyncio.to_thread(train.train.of, context.run)
    artifacts = await tracking.call(lambda mlflow: str(mlflow.get_run(recorded.run_id).info.artifact_uri))
    version = await registry.add(
        tracking,
        parameters.model,
        recorded.run_id,
        f"{artifacts}/{train.train.name}/{train.ADAPTER}",
        {
            runs.GATE: runs.PASSED,
            "base_model": trained.base_model,
            "data_version": trained.data_version,
            "sha256": trained.sha256,
        },
    )
    context.progress.line(f"register: version {version} of {parameters.model}")
    return Outputs(
        run_id=recorded.run_id, model=parameters.model, version=version, uri=f"models:/{parameters.model}/{version}"
    )


def require_gate(run: Path, run_id: str) -> None:
    """Raises Conflict when the run's gate was not passed. Blocks."""
    verdict = gate.gate.of(run)
    if not verdict.passed:
        raise Conflict(
            f"The gate '{verdict.gate}' was not passed: nothing is registered. The run is recorded as {run_id}.",
            field="gate",
        )


def _require_passed(run: Path, run_id: str) -> None:
    require_gate(run, run_id)
    candidate = evaluate.evaluate.attempt(run).parameters["candidate"]["adapter"]
    if (run / load.load.name).exists():
        record.require_current(load.load, run)
        trained = load.load.of(run).name
        if candidate != trained:
            raise _of_another(f"The adapter '{candidate}' was evaluated, and '{trained}' was trained.")
    elif not candidate:
        raise _of_another("What was evaluated is no adapter.")
    elif times(evaluate.evaluate, run)[0] < times(train.train, run)[1]:
        raise _of_another("The adapter was trained again after it was evaluated.")


def _of_another(why: str) -> Conflict:
    return Conflict(f"{why} The verdict is not on this adapter: evaluate it, and judge it by the gate.", field="gate")


register = Step(
    "register",
    Parameters,
    Outputs,
    _register,
    needs=(curate.curate, train.train, evaluate.evaluate, gate.gate),
    acts_outside=True,
)
