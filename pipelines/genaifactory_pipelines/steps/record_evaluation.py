"""record_evaluation: an evaluation in MLflow, whether its gate was passed or not."""

from __future__ import annotations

from pathlib import Path

from genaifactory_common.specs.names import Name
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import evaluate, gate, record


class Parameters(record.Parameters):
    """How the evaluation is recorded."""

    experiment: Name = "evaluate"


async def _record(parameters: Parameters, context: Context, folder: Path) -> record.Outputs:
    """Raises FactoryError. It leaves nothing in its folder."""
    return await record.record_steps(parameters, context, (evaluate.evaluate, gate.gate))


record_evaluation = Step(
    "record_evaluation",
    Parameters,
    record.Outputs,
    _record,
    needs=(evaluate.evaluate, gate.gate),
    acts_outside=True,
)
