"""register_prompt: the prompt that was evaluated as a version in MLflow, once its gate was passed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from genaifactory_common.errors import Conflict
from genaifactory_common.specs.routes import Prompt
from genaifactory_pipelines.evaluation.protocol import Candidate
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import evaluate, gate, record_evaluation, register
from genaifactory_pipelines.tracking import client, registry, runs
from genaifactory_pipelines.values import Values


class Parameters(Values):
    """What becomes a version. Its text goes to MLflow, as that of no other prompt does."""

    prompt: Prompt
    """As factory.yaml had it when it was evaluated."""
    record: record_evaluation.Parameters


class Outputs(Values):
    """The version."""

    run_id: str
    """In MLflow."""
    prompt: str
    """NAME@VERSION."""
    uri: str
    """By which MLflow finds it."""


async def _register(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Records the evaluation, then registers its prompt. Raises FactoryError: Conflict when the gate was not passed, or
    when its verdict is not on this prompt."""
    recorded = await record_evaluation.record_evaluation.run(parameters.record, context)
    prompt = parameters.prompt
    await asyncio.to_thread(_require_passed, prompt, context.run, recorded.run_id)
    tracking = await asyncio.to_thread(client.from_environment, context.progress.line)
    uri = await registry.add_prompt(tracking, prompt, recorded.run_id, {runs.GATE: runs.PASSED})
    context.progress.line(f"register_prompt: {prompt.reference}")
    return Outputs(run_id=recorded.run_id, prompt=prompt.reference, uri=uri)


def _require_passed(prompt: Prompt, run: Path, run_id: str) -> None:
    register.require_gate(run, run_id)
    asked = evaluate.evaluate.attempt(run).parameters
    candidate = Candidate.model_validate(asked["candidate"])
    if candidate != Candidate(prompt=prompt.reference):
        raise Conflict(
            f"What was evaluated is '{candidate}', and not the prompt {prompt.reference} alone. The verdict is not on "
            "this prompt: evaluate it, and judge it by the gate.",
            field="prompt",
        )
    if evaluate.digest_of(prompt) != asked.get("prompt_sha256"):
        raise Conflict(
            f"The text of {prompt.reference}, or a refusal of it, is not what was evaluated. Evaluate it again.",
            field="prompt",
        )


register_prompt = Step(
    "register_prompt",
    Parameters,
    Outputs,
    _register,
    needs=(evaluate.evaluate, gate.gate),
    acts_outside=True,
)
