"""`genaifactory evaluate`: how good the answers of a candidate are, beside production's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from genaifactory_common import conversation
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.specs.routes import Prompt
from genaifactory_local import endpoints, interpreters, runs, state, tracking
from genaifactory_local.commands.options import (
    NOT_PASSED,
    AtOnceOption,
    JsonOption,
    KeyOption,
    StateOption,
    TextsOption,
    print_json,
    table,
)
from genaifactory_pipelines.evaluation import leaks, registry
from genaifactory_pipelines.evaluation.gate import Verdict
from genaifactory_pipelines.evaluation.protocol import PRODUCTION, Candidate
from genaifactory_pipelines.step import Step
from genaifactory_pipelines.steps import evaluate as evaluating
from genaifactory_pipelines.steps import gate as gating
from genaifactory_pipelines.steps import record_evaluation as recording
from genaifactory_pipelines.steps import register_prompt as registering
from genaifactory_pipelines.values import Values

_IN_MLFLOW = (recording.record_evaluation.name, registering.register_prompt.name)


def evaluate(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run. Given again with the same options, it goes on.")
    ],
    golden: Annotated[Path, typer.Option(help="The golden set: questions with the right answers, as JSON lines.")],
    route: Annotated[str, typer.Option(help="The route that answers.")],
    model: Annotated[str, typer.Option(help="Evaluate this chat model of factory.yaml.")] = "",
    adapter: Annotated[str, typer.Option(help="Evaluate this adapter, which the model server has loaded.")] = "",
    prompt: Annotated[str, typer.Option(help="Evaluate this version of the route's prompt: NAME@VERSION.")] = "",
    index_version: Annotated[str, typer.Option(help="Evaluate this index version.")] = "",
    gate: Annotated[str, typer.Option(help="Judge by this gate of factory.yaml. Without it: no verdict.")] = "",
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Ask more questions: bias, memorised, safety; those that the gate needs are asked too."),
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Have answers compared, and claims checked, by the model of this route.")
    ] = "",
    policy: Annotated[
        str, typer.Option(help="Look for private data in answers by this guardrail policy, beside the route's own.")
    ] = "",
    embedding_model: Annotated[
        str, typer.Option(help="Compare claims with passages by this embedding model too. Without it: by words alone.")
    ] = "",
    at_once: AtOnceOption = 4,
    tracked: Annotated[
        bool,
        typer.Option("--mlflow", help="Record it in MLflow; with --prompt, register what passed. It needs --gate."),
    ] = False,
    texts: TextsOption = True,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Ask the golden set through the platform and score the answers, of a candidate and of production.

    Without a candidate (--model, --adapter, --prompt, --index-version) production is scored alone. Exit status 3: the
    gate was not passed.

    Example: `genaifactory evaluate --golden golden.jsonl --route rag --prompt rag@2 --gate default -o rag-2`
    """
    if tracked and not gate:
        raise InvalidArgument("--mlflow records what a gate says of the answers: give --gate as well.", field="--gate")
    platform = endpoints.find(state_folder)
    factory = platform.factory()
    its_prompt = factory.prompt(prompt) if prompt else None
    candidate = Candidate(model=model, adapter=adapter, prompt=prompt, index_version=index_version)
    compared = candidate != PRODUCTION
    hidden = leaks.templates(factory, route, prompt)
    rules = gating.named(factory, gate, compared=compared) if gate else None
    if rules is not None:
        setup = evaluating.setup(factory, route, compared=compared, judge=judge, hidden=hidden)
        gating.require_enough(rules, golden, setup)
    wanted = evaluating.Parameters(
        name=conversation.as_id(output.resolve().name or "evaluation"),
        route=route,
        golden=golden,
        candidate=candidate,
        suites=tuple(sorted({*(suite or ()), *(registry.needed(rules) if rules is not None else ())})),
        hidden=hidden,
        judge=judge,
        policy=policy,
        embedding_model=embedding_model,
        at_once=at_once,
        prompt_sha256=evaluating.digest_of(its_prompt),
    )

    steps = partial(in_mlflow, wanted, its_prompt, texts)
    where = interpreters.of(_IN_MLFLOW if tracked else ())
    variables = tracking.environment(state_folder) if tracked else {}
    report = output / evaluating.evaluate.name / evaluating.REPORT

    async def run() -> tuple[evaluating.Outputs, Verdict | None]:
        async with runs.context(platform, key, output) as context:
            found = await evaluating.evaluate.run(wanted, context)
            if not as_json:
                print_scores(found)
                print(f"Report: {report}")
            if rules is None:
                return found, None
            verdict = await gating.gate.run(gating.Parameters(gate=rules), context)
            for step, parameters in steps(verdict) if tracked else ():
                await runs.execute(step, parameters, context, where, variables)
            return found, verdict

    found, verdict = asyncio.run(run())
    done = [step.name for step, _ in steps(verdict)] if tracked and verdict is not None else []
    if as_json:
        judged = None if verdict is None else verdict.model_dump()
        print_json({**found.model_dump(), "verdict": judged, "report": str(report), **_results(output, done)})
    elif verdict is not None:
        print_verdict(verdict)
        print(f"Report: {output / gating.gate.name / gating.REPORT}")
        _print_recorded(output, done)
    if verdict is not None and not verdict.passed:
        raise typer.Exit(NOT_PASSED)


def in_mlflow(
    wanted: evaluating.Parameters, prompt: Prompt | None, texts: bool, verdict: Verdict
) -> Iterator[tuple[Step[Any, Any], Values]]:
    """The steps that take an evaluation to MLflow, and its prompt where that alone was evaluated and passed."""
    record = recording.Parameters(name=wanted.name, dataset="examples" if texts else "counts")
    yield recording.record_evaluation, record
    if prompt is not None and verdict.passed and wanted.candidate == Candidate(prompt=prompt.reference):
        yield registering.register_prompt, registering.Parameters(prompt=prompt, record=record)


def _results(run: Path, done: Sequence[str]) -> dict[str, Any]:
    record, register = recording.record_evaluation, registering.register_prompt
    return {
        "run_id": record.of(run).run_id if record.name in done else None,
        "registered": register.of(run).model_dump() if register.name in done else None,
    }


def _print_recorded(run: Path, done: Sequence[str]) -> None:
    found = _results(run, done)
    if found["run_id"]:
        print(f"Recorded in MLflow as the run {found['run_id']}.")
    if found["registered"]:
        prompt = found["registered"]["prompt"]
        approve = f"genaifactory registry promote {prompt.replace('@', ' ')} --prompt --reason WHY"
        print(f"{prompt} is registered. To approve it: {approve}")


def print_scores(found: evaluating.Outputs) -> None:
    """A table of the metrics."""
    compared = any(metric.production is not None for metric in found.metrics.values())
    rows = table("metric", "items", *(("candidate", "production", "difference") if compared else ("production",)))
    for name, metric in found.metrics.items():
        *means, difference, interval = metric.shown()
        row = (name, f"{metric.items:,}", *means, f"{difference} {interval}".rstrip())
        rows.add_row(*row[: len(rows.columns)])
    Console().print(rows)


def print_verdict(verdict: Verdict) -> None:
    """Whether a gate was passed, and what stopped the candidate."""
    print(f"Gate {verdict.gate}: {'passed' if verdict.passed else 'not passed'}")
    for finding in verdict.failed():
        print(f"  {finding.what}: {finding.evidence}")
