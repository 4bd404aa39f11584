"""reindex: a new index version of a knowledge base, checked against the active one before it serves."""

from __future__ import annotations

import asyncio

from pydantic import Field

from genaifactory_pipelines.evaluation import leaks
from genaifactory_pipelines.step import Context
from genaifactory_pipelines.steps import gate as gating
from genaifactory_pipelines.steps import reindex as step
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows.protocol import Surroundings, Task, Workflow, names


class Parameters(Values):
    """What is indexed, and what the new version has to fulfil."""

    knowledge_base: str = Field(default="documents", description="A knowledge base of factory.yaml.")
    sources: str = Field(default="", description="Sources of factory.yaml that are read again before, with commas.")
    golden: str = Field(
        default="",
        description="Questions with the documents that answer them, a file in the volume's folder inputs; empty: only "
        "the contents are compared.",
    )
    route: str = Field(default="", description="The route that is asked; empty: the first that searches it.")
    gate: str = Field(
        default="", description="A gate of factory.yaml; empty: recall and nDCG not worse by more than 0.02."
    )
    shrinking: bool = Field(
        default=False, description="Whether what is gone is removed even if it is more than least_share allows."
    )
    keep_failed: bool = Field(
        default=False, description="Whether a version that did not pass is kept beside the active one."
    )
    at_once: int = Field(default=4, ge=1, le=64, description="Questions at a time, of each of the two versions.")


async def _reindex(given: Parameters, around: Surroundings, context: Context) -> step.Outputs:
    return await step.reindex.run(await asyncio.to_thread(_wanted, given, around), context)


def _wanted(given: Parameters, around: Surroundings) -> step.Parameters:
    factory = around.factory()
    base = given.knowledge_base
    route = step.route(factory, given.route, base, field="route") if given.golden else ""
    return step.Parameters(
        knowledge_base=base,
        chunking=step.chunking(factory, base),
        embedder=step.embedder(factory, base),
        golden=around.input(given.golden, "golden") if given.golden else None,
        route=route,
        gate=gating.named(factory, given.gate, compared=True) if given.gate else step.AS_GOOD,
        hidden=leaks.templates(factory, route),
        sources=step.sources(factory, names(given.sources), base, field="sources"),
        shrinking=given.shrinking,
        keep_failed=given.keep_failed,
        at_once=given.at_once,
    )


def _not_passed(outputs: step.Outputs) -> str:
    return "" if outputs.passed else f"{outputs.before} serves as before: {'; '.join(outputs.failed)}"


reindex = Workflow(
    name="reindex",
    title="Index again",
    about="Builds a new index version of a knowledge base as factory.yaml describes it now, compares it with the "
    "active one, and lets it serve when it is as good. The version before is kept for a way back.",
    parameters=Parameters,
    tasks=(
        Task(
            "reindex",
            "A new version, its comparison with the active one, and the swap.",
            _reindex,
            outputs=("version", "before", "passed"),
            report=f"{step.reindex.name}/{step.REPORT}",
            not_passed=_not_passed,
            deadline_seconds=12 * 3600,
        ),
    ),
    alone_by=("knowledge_base",),
    deadline_seconds=24 * 3600,
)
