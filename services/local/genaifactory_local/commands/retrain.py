"""`genaifactory retrain`: the whole improvement loop, from the record to an adapter that passed a gate."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from genaifactory_common import specs
from genaifactory_local import endpoints, interpreters, runs, state, tracking
from genaifactory_local.commands import evaluate as evaluating
from genaifactory_local.commands import train as training
from genaifactory_local.commands.options import (
    NOT_PASSED,
    AtOnceOption,
    JsonOption,
    KeyOption,
    StateOption,
    TextsOption,
    print_json,
)
from genaifactory_pipelines import retrain as dag
from genaifactory_pipelines import summary
from genaifactory_pipelines.datasets.records import Unrated
from genaifactory_pipelines.steps import curate, evaluate, gate, load, register, train
from genaifactory_pipelines.training.options import HUB, Method, base_folder


def retrain(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run. Given again with the same options, the run goes on."),
    ],
    golden: Annotated[Path, typer.Option(help="The golden set: questions with the right answers, as JSON lines.")],
    base: Annotated[str, typer.Option(help="The base model: a folder, or hf://ORG/NAME.")],
    route: Annotated[str, typer.Option(help="The route whose record is learnt from, and that answers the golden set.")],
    gate_name: Annotated[str, typer.Option("--gate", help="The gate of factory.yaml that has to be passed.")],
    learn_from: Annotated[
        list[str] | None,
        typer.Option(help="A route whose record is learnt from instead of that of --route; may be repeated."),
    ] = None,
    since: Annotated[str, typer.Option(help="From when: an age like 24h or 7d, or a date like 2026-11-21.")] = "30d",
    until: Annotated[str, typer.Option(help="Until when, exclusive; like --since. Without it: now.")] = "",
    served_as: Annotated[
        str, typer.Option(help="The base's name in factory.yaml, where it is not served from the same place.")
    ] = "",
    name: Annotated[str, typer.Option(help="What the adapter's name begins with; its SHA-256 follows.")] = "candidate",
    examples: Annotated[Path | None, typer.Option(help="A file of examples to add, as JSON lines.")] = None,
    policy: Annotated[
        str, typer.Option(help="The guardrail policy that masks personal data. Without it: the only one.")
    ] = "",
    unrated: Annotated[Unrated, typer.Option(help="Answers that nobody rated.")] = "leave_out",
    least: Annotated[int, typer.Option(min=3, help="Fewer examples are refused.")] = 20,
    method: training.MethodOption = None,
    seed: training.SeedOption = None,
    parameters: Annotated[
        Path | None, typer.Option(help="A JSON file of more parameters of the training; docs/training.md lists them.")
    ] = None,
    source: Annotated[
        str, typer.Option(help="The adapter as the model server sees it, where it does not see the run's folder.")
    ] = "",
    at_once: AtOnceOption = 4,
    model: Annotated[
        str | None, typer.Option(help="The registered model that gets a new version. Without it: as the route.")
    ] = None,
    tracked: Annotated[
        bool, typer.Option("--mlflow/--no-mlflow", help="Record the run in MLflow, and register what passed the gate.")
    ] = True,
    texts: TextsOption = True,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Learn from the record: collect, curate, train, load, evaluate, gate and register, against a running platform.

    The run is recorded in the MLflow that MLFLOW_TRACKING_URI names, or in one in the state folder.

    Exit status 3: the gate was not passed, and the adapter is unloaded again, unless factory.yaml names it.

    Example: `genaifactory retrain --golden golden.jsonl --base ~/models/Qwen3-0.6B --route chat --gate default -o nov`
    """
    platform = endpoints.find(state_folder)
    given = dag.parameters(
        {
            "since": since,
            "until": until,
            "route": route,
            "learn_from": tuple(learn_from or ()),
            "golden": golden.resolve(),
            "examples": examples.resolve() if examples is not None else None,
            "policy": policy,
            "unrated": unrated,
            "least_examples": least,
            "base": _base(base),
            "served_as": served_as,
            "training": _training(training.read(parameters), method, seed),
            "gate": gate_name,
            "name": name,
            "source": source,
            "at_once": at_once,
            "model": model,
            "tracked": tracked,
            "texts": texts,
        }
    )
    plan = dag.plan(given, platform.factory(), datetime.now(UTC))
    where = interpreters.of(stage.step.name for stage in dag.stages(given))
    variables = tracking.environment(state_folder) if tracked else {}
    plan = dag.begin(output, plan)

    async def run() -> bool:
        async with runs.context(platform, key, output) as context:
            execute = partial(runs.execute, interpreters=where, environment=variables)
            return await dag.run(plan, context, execute, platform.factory)

    passed = asyncio.run(run())
    if as_json:
        print_json(_results(output, passed and tracked))
    else:
        evaluating.print_scores(evaluate.evaluate.of(output))
        evaluating.print_verdict(gate.gate.of(output))
        print(f"Report: {output / summary.FILE}")
        print(_advice(output, passed, passed and tracked, platform.factory()))
    if not passed:
        raise typer.Exit(NOT_PASSED)


def _base(given: str) -> str:
    found = training.base_of(given)
    if not found.startswith(HUB):
        base_folder(Path(found))
    return found


def _training(values: dict[str, Any], method: Method | None, seed: int | None) -> dict[str, Any]:
    """Options of this command go before the file's; the base is no parameter of the file here."""
    chosen = {"method": method, "seed": seed}
    return values | {name: value for name, value in chosen.items() if value is not None}


def _advice(run: Path, passed: bool, registered: bool, factory: specs.Factory) -> str:
    adapter = load.load.of(run).name
    if passed:
        version = register.register.of(run) if registered else None
        also = f", and version {version.version} of {version.model} in MLflow" if version is not None else ""
        return f"{adapter} is loaded{also}. To release it, see docs/loop.md."
    ended = load.stays(adapter) if load.named(factory, adapter) else f"{adapter} is unloaded"
    return (
        f"{ended}. {run / gate.gate.name / gate.REPORT} shows each rule with its evidence, and "
        "docs/evaluation.md what to do (A gate that was not passed)."
    )


def _results(run: Path, registered: bool) -> dict[str, Any]:
    loaded = load.load.of(run)
    return {
        "dataset": curate.curate.of(run).model_dump(),
        "adapter": {"folder": str(run / train.train.name / train.ADAPTER), **train.train.of(run).model_dump()},
        "candidate": loaded.name,
        "metrics": evaluate.evaluate.of(run).model_dump()["metrics"],
        "verdict": gate.gate.of(run).model_dump(),
        "registered": register.register.of(run).model_dump() if registered else None,
        "report": str(run / summary.FILE),
    }
