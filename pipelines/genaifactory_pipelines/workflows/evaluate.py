"""evaluate: a golden set is asked of a candidate and of production, and a gate judges the difference."""

from __future__ import annotations

import asyncio

from pydantic import Field

from genaifactory_common import conversation
from genaifactory_pipelines.evaluation import leaks, registry
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.evaluation.protocol import PRODUCTION, Candidate
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import evaluate as evaluating
from genaifactory_pipelines.steps import gate as gating
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows import approvals
from genaifactory_pipelines.workflows.protocol import Surroundings, Task, Workflow, names, not_passed


class Parameters(Values):
    """What is evaluated, and by what."""

    route: str = Field(description="The route that answers.")
    golden: str = Field(default="golden.jsonl", description="The golden set, a file in the volume's folder inputs.")
    model: str = Field(default="", description="Evaluate this chat model of factory.yaml.")
    adapter: str = Field(default="", description="Evaluate this adapter, which the model server has loaded.")
    prompt: str = Field(default="", description="Evaluate this version of the route's prompt: NAME@VERSION.")
    index_version: str = Field(default="", description="Evaluate this index version.")
    gate: str = Field(default="default", description="The gate of factory.yaml that judges.")
    suites: str = Field(
        default="", description="More questions, with commas: bias, memorised, safety; the gate's own are asked anyway."
    )
    judge: str = Field(default="", description="Have the answers of both compared by the model of this route.")
    policy: str = Field(
        default="", description="Look for private data in answers by this guardrail policy, beside the route's own."
    )
    embedding_model: str = Field(
        default="", description="Compare claims with passages by this embedding model too; empty: by words alone."
    )
    at_once: int = Field(default=4, ge=1, le=64, description="Questions at a time, of each of the two.")
    approval: approvals.Wanted = approvals.wanted("none")
    approval_seconds: int = approvals.seconds()

    @property
    def candidate(self) -> Candidate:
        """What is compared with production."""
        return Candidate(model=self.model, adapter=self.adapter, prompt=self.prompt, index_version=self.index_version)


async def _evaluate(given: Parameters, around: Surroundings, context: Context) -> evaluating.Outputs:
    return await evaluating.evaluate.run(await asyncio.to_thread(_wanted, given, around), context)


def _wanted(given: Parameters, around: Surroundings) -> evaluating.Parameters:
    rules, golden = _rules(given, around).gate, around.input(given.golden, "golden")
    factory = around.factory()
    hidden = leaks.templates(factory, given.route, given.prompt)
    compared = given.candidate != PRODUCTION
    gating.require_enough(
        rules,
        golden,
        evaluating.setup(factory, given.route, compared=compared, judge=given.judge, hidden=hidden),
    )
    return evaluating.Parameters(
        name=conversation.as_id(around.name),
        route=given.route,
        golden=golden,
        candidate=given.candidate,
        suites=tuple(sorted({*names(given.suites), *registry.needed(rules)})),
        hidden=hidden,
        judge=given.judge,
        policy=given.policy,
        embedding_model=given.embedding_model,
        at_once=given.at_once,
        prompt_sha256=evaluating.digest_of(factory.prompt(given.prompt) if given.prompt else None),
    )


async def _gate(given: Parameters, around: Surroundings, context: Context) -> Verdict:
    return await gating.gate.run(await asyncio.to_thread(_rules, given, around), context)


def _rules(given: Parameters, around: Surroundings) -> gating.Parameters:
    return gating.Parameters(gate=gating.named(around.factory(), given.gate, compared=given.candidate != PRODUCTION))


evaluate = Workflow(
    name="evaluate",
    title="Evaluate a candidate",
    about="Asks the golden set of a candidate and of production, and judges the difference by a gate. Without a "
    "candidate production alone is scored. It fails when the gate is not passed, or a person does not approve.",
    parameters=Parameters,
    tasks=(
        Task(
            "evaluate", "The golden set, of the candidate and of production.", _evaluate, report="evaluate/report.html"
        ),
        Task(
            "gate",
            "The rules of the gate.",
            _gate,
            needs=("evaluate",),
            outputs=("passed",),
            report="gate/report.html",
            not_passed=not_passed,
        ),
        *approvals.tasks("gate"),
    ),
    deadline_seconds=3 * 24 * 3600,
)
