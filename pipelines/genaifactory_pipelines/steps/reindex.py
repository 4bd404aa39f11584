"""reindex: a new index version from the stored documents, checked against the active one, and only then served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import conversation, files, specs
from genaifactory_common.errors import Conflict, FactoryError, InvalidArgument
from genaifactory_pipelines.evaluation import registry
from genaifactory_pipelines.evaluation.protocol import Candidate, Setup
from genaifactory_pipelines.indexes import building, findings, page
from genaifactory_pipelines.indexes.findings import Check, Findings, Version
from genaifactory_pipelines.sources import sync
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import evaluate, gate
from genaifactory_pipelines.values import INPUT, Values

REPORT = "report.html"
_FOUND = "findings.json"
_LOST = 0.02
_COUNTINGS = 5
_COUNT_SECONDS = 1.0
_SEARCH = ("retrieval_recall", "retrieval_ndcg")

AS_GOOD = specs.Gate(
    name="as-good", rules=tuple(specs.GateRule(metric=metric, not_worse_by=_LOST) for metric in _SEARCH)
)
"""The search finds as much as before, and as high."""


class Parameters(Values):
    """What is indexed, and what the new version has to fulfil."""

    knowledge_base: str
    """Its chunking and embedder are those of factory.yaml at this moment."""
    chunking: tuple[int, int] | None = None
    """What factory.yaml has then, of `chunking`: with another one a run begins anew. None: unknown."""
    embedder: specs.AnyEmbedder | None = None
    """As `chunking`, of `embedder`."""
    golden: Annotated[Path | None, INPUT] = None
    """Questions with the documents that hold the answer; without them only the contents are compared."""
    route: str = ""
    """With a golden set: the route that searches the knowledge base."""
    gate: specs.Gate = AS_GOOD
    """With a golden set: the rules, of any metric that needs no judge."""
    hidden: tuple[str, ...] = ()
    """See evaluate.Parameters."""
    sources: tuple[specs.AnySource, ...] = ()
    """Read again before the build, and whenever a run is done again."""
    shrinking: bool = False
    """See sync.synchronise."""
    keep_failed: bool = False
    """A version that did not pass is kept beside the active one, to be looked into."""
    at_once: int = Field(default=4, ge=1, le=64)
    """Questions at a time, of each of the two versions."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.golden is not None and not self.route:
            raise ValueError("'golden' needs 'route'")
        return self


class Outputs(Values):
    """What became of the new version."""

    version: str
    before: str
    """The active version that it was compared with, which is kept."""
    passed: bool
    failed: tuple[str, ...]
    """The checks that it did not pass, each with the evidence."""
    documents: int
    passages: int
    metrics: dict[str, float]
    """Of the search by the new version."""


async def _reindex(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Nothing but the last call changes what answers rest on. Raises FactoryError."""
    path = folder / _FOUND
    if await asyncio.to_thread(path.exists):
        found = await _refreshed(
            Findings.model_validate_json(await asyncio.to_thread(path.read_bytes)), parameters, context
        )
    else:
        found = await _found(parameters, context, folder)
        await asyncio.to_thread(files.write, path, f"{found.model_dump_json(indent=2)}\n".encode())
    outcome = await _concluded(parameters, context, found)
    html = page.html(parameters.knowledge_base, found, outcome)
    await asyncio.to_thread(files.write, folder / REPORT, html.encode(), mode=0o644)
    new = next((each for each in found.versions if each.name == found.version), None)
    return Outputs(
        version=found.version,
        before=found.before,
        passed=found.passed,
        failed=tuple(f"{check.name}: {check.evidence}" for check in found.checks if not check.passed),
        documents=new.documents if new else 0,
        passages=new.passages if new else 0,
        metrics={name: metric.candidate for name, metric in found.metrics.items()},
    )


async def _found(parameters: Parameters, context: Context, folder: Path) -> Findings:
    base = parameters.knowledge_base
    if parameters.golden is not None:
        setup = Setup(compared=True, searched=True, hidden=bool(parameters.hidden))
        await asyncio.to_thread(gate.require_enough, parameters.gate, parameters.golden, setup)
    read = await _reread(parameters, context)
    before = findings.version(findings.active(await context.gateway.indexes(base)))
    with context.progress.counting("reindex: passages", before.passages) as report:
        built = await building.build(context.gateway, base, folder, report)
    checks = [findings.of_build(built.problem)]
    versions: tuple[Version, ...] = (before,)
    metrics = {}
    if built.state != gateway_pb2.INDEX_STATE_FAILED:
        versions, counted = await _counted(context, base, built.index_version)
        before = versions[1]
        checks.append(counted)
        if parameters.golden is not None and counted.passed:
            measured, compared = await _compared(parameters, parameters.golden, context, folder, built.index_version)
            checks += compared
            metrics = {name: measured.metrics[name] for name in _SEARCH if name in measured.metrics}
    return Findings(
        version=built.index_version,
        before=before.name,
        versions=versions,
        checks=tuple(checks),
        metrics=metrics,
        sources=read,
    )


async def _refreshed(found: Findings, parameters: Parameters, context: Context) -> Findings:
    """With the sources read again and versions as they are now. Checks stay: a write goes into every version."""
    read = await _reread(parameters, context)
    now = {each.version: findings.version(each) for each in await context.gateway.indexes(parameters.knowledge_base)}
    versions = tuple(now.get(each.name, each) for each in found.versions)
    return found.model_copy(update={"sources": read, "versions": versions})


async def _reread(parameters: Parameters, context: Context) -> tuple[findings.Reread, ...]:
    if not parameters.sources:
        return ()
    done = await sync.synchronise(
        context.gateway.channel, parameters.sources, context.progress, shrinking=parameters.shrinking
    )
    return tuple(map(findings.reread, done))


async def _counted(context: Context, base: str, name: str) -> tuple[tuple[Version, Version], Check]:
    """The new version and the active one. Counted again where they differ, since documents may be written meanwhile."""
    left = _COUNTINGS
    while True:
        indexes = await context.gateway.indexes(base)
        active = findings.version(findings.active(indexes))
        new = next((findings.version(each) for each in indexes if each.version == name), None)
        if new is None:
            raise Conflict(f"The index version '{name}' was dropped by another build. Run again in a new folder.")
        check = findings.of_counts(new, active)
        left -= 1
        if check.passed or not left:
            return (new, active), check
        await asyncio.sleep(_COUNT_SECONDS)


async def _compared(
    parameters: Parameters, questions: Path, context: Context, folder: Path, version: str
) -> tuple[evaluate.Outputs, list[Check]]:
    """Asks the golden set through the platform, of both versions. In folders of their own below this step's."""
    inner = Context(folder, context.gateway, context.progress)
    wanted = evaluate.Parameters(
        name=conversation.as_id(f"reindex-{parameters.knowledge_base}-{version}"),
        route=parameters.route,
        golden=questions,
        candidate=Candidate(index_version=version),
        suites=registry.needed(parameters.gate),
        hidden=parameters.hidden,
        at_once=parameters.at_once,
    )
    try:
        measured = await evaluate.evaluate.run(wanted, inner)
        verdict = await gate.gate.run(gate.Parameters(gate=parameters.gate), inner)
    except FactoryError as error:
        if not context.gateway.patience().passes(error):  # another attempt would fail alike, so nothing is kept for it
            await context.gateway.drop_index(parameters.knowledge_base, version)
        raise
    return measured, list(findings.of_gate(verdict))


async def _concluded(parameters: Parameters, context: Context, found: Findings) -> str:
    """Serves the version or drops it, unless an attempt before has; a sentence says which. Raises Conflict."""
    base, name = parameters.knowledge_base, found.version
    indexes = await context.gateway.indexes(base)
    state = next((each.state for each in indexes if each.version == name), gateway_pb2.INDEX_STATE_UNSPECIFIED)
    if not found.passed:
        if parameters.keep_failed and state == gateway_pb2.INDEX_STATE_READY:
            return f"{found.before} serves as before; {name} is kept beside it."
        if state == gateway_pb2.INDEX_STATE_READY:
            await context.gateway.drop_index(base, name)
        return f"{found.before} serves as before; {name} was removed."
    if state != gateway_pb2.INDEX_STATE_ACTIVE:
        active = findings.active(indexes).version
        kept = state in (gateway_pb2.INDEX_STATE_READY, gateway_pb2.INDEX_STATE_PREVIOUS)
        if state != gateway_pb2.INDEX_STATE_READY or active != found.before:
            raise Conflict(
                f"The index version '{name}' was compared with '{found.before}', and meanwhile "
                + (f"'{active}' was activated" if kept else "was dropped")
                + ". Run again in a new folder.",
                field="knowledge_base",
            )
        await context.gateway.swap_index(base, name)
    return f"{name} serves; {found.before} is kept for a way back."


def route(factory: specs.Factory, name: str, knowledge_base: str, *, field: str) -> str:
    """The route by which a knowledge base is asked; without a name the first that searches it.

    Raises InvalidArgument.
    """
    fitting = [each.name for each in factory.routes if each.task == "rag" and each.knowledge_base == knowledge_base]
    if not fitting or (name and name not in fitting):
        wanted = f"The route '{name}' does not search" if name else "No route searches"
        known = ", ".join(fitting) or "none"
        raise InvalidArgument(f"{wanted} the knowledge base '{knowledge_base}'; those that do: {known}.", field=field)
    return name or fitting[0]


def chunking(factory: specs.Factory, knowledge_base: str) -> tuple[int, int] | None:
    """Tokens of a passage, and how many of them the next one shares; None for an unknown knowledge base."""
    found = _described(factory, knowledge_base)
    return None if found is None else (found.chunk_tokens, found.chunk_overlap_tokens)


def embedder(factory: specs.Factory, knowledge_base: str) -> specs.AnyEmbedder | None:
    """What makes its vectors; None for an unknown knowledge base."""
    found = _described(factory, knowledge_base)
    return None if found is None else found.embedder


def _described(factory: specs.Factory, knowledge_base: str) -> specs.KnowledgeBase | None:
    return next((each for each in factory.knowledge_bases if each.name == knowledge_base), None)


def sources(
    factory: specs.Factory, names: Sequence[str], knowledge_base: str, *, field: str
) -> tuple[specs.AnySource, ...]:
    """The sources of factory.yaml of these names. Raises InvalidArgument, also for one of another knowledge base."""
    found = sync.chosen(factory, names, field=field) if names else []
    for source in found:
        if source.knowledge_base != knowledge_base:
            raise InvalidArgument(
                f"The source '{source.name}' belongs to the knowledge base '{source.knowledge_base}'.", field=field
            )
    return tuple(found)


reindex = Step("reindex", Parameters, Outputs, _reindex, acts_outside=True)
