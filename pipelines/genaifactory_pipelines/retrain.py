"""retrain: the improvement loop as a DAG, the same for `genaifactory retrain` and for the workflow of a cluster.

    collect -> curate -> train -> load -> evaluate -> gate -> record -> register

`Parameters` are what a person gives, a `Plan` is what follows from them on one platform, and each step's parameters
are made of the plan and of the outputs of the steps before it, here alone. The plan is a file of the run's folder, so
that a run goes on with the window of the record that it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from genaifactory_common import conversation, files, specs
from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import FactoryError, InvalidArgument
from genaifactory_common.specs.names import Name
from genaifactory_pipelines import curation, summary, windows
from genaifactory_pipelines.datasets.contract import first_problem
from genaifactory_pipelines.datasets.records import Unrated
from genaifactory_pipelines.evaluation import leaks, registry
from genaifactory_pipelines.evaluation.protocol import Candidate
from genaifactory_pipelines.step import Context, Execute, Step, require_unchanged
from genaifactory_pipelines.steps import collect, curate, evaluate, gate, load, record, register, train
from genaifactory_pipelines.training.options import Options, Training
from genaifactory_pipelines.values import INPUT, Values

PLAN = "plan.json"


class Parameters(Values):
    """What a run of the DAG is given."""

    since: str = Field(
        default="30d", title="Since", description="The record from when on: an age like 24h or 7d, or a date."
    )
    until: str = Field(default="", title="Until", description="Until when, exclusive; empty: until the run begins.")
    route: str = Field(
        title="Route", description="Its record is learnt from, and the candidate is evaluated through it."
    )
    learn_from: tuple[str, ...] = Field(
        default=(),
        title="Learn from",
        description="Routes whose record is learnt from instead of that of 'route'; several with commas between them.",
    )
    golden: Annotated[Path, INPUT] = Field(
        title="Golden set",
        description="Questions with the right answers, as JSON lines; they are kept out of training.",
    )
    examples: Annotated[Path | None, INPUT] = Field(
        default=None, title="Examples", description="Examples that are added to the recorded ones, as JSON lines."
    )
    policy: str = Field(
        default="", title="Policy", description="The guardrail policy that masks personal data; empty: the only one."
    )
    unrated: Unrated = Field(
        default="leave_out", title="Unrated answers", description="Answers that nobody rated: leave them out, or take."
    )
    least_examples: int = Field(default=20, ge=3, title="Fewest examples", description="Fewer end the run.")
    base: str = Field(
        min_length=1, title="Base model", description="A folder, or hf://ORG/NAME[@REVISION], of the base to train on."
    )
    served_as: str = Field(
        default="", title="Served as", description="The base's name in factory.yaml, where its source is another."
    )
    training: Training = Field(default=Training(), title="Training", description="See docs/training.md.")
    gate: str = Field(title="Gate", description="The gate of factory.yaml that the candidate has to pass.")
    name: load.Prefix = Field(
        default="candidate", title="Name", description="What the adapter's name begins with; its SHA-256 follows."
    )
    source: str = Field(
        default="",
        title="Source",
        description="The adapter as the model server sees it, where it does not see the run's folder.",
    )
    at_once: int = Field(
        default=4, ge=1, le=64, title="At once", description="Questions at a time, of each of the two."
    )
    tracked: bool = Field(
        default=True, title="In MLflow", description="Record the run in MLflow, and register what passed the gate."
    )
    texts: bool = Field(
        default=True,
        title="Texts in MLflow",
        description="Whether MLflow gets texts of examples, golden items and answers; else it gets counts and scores.",
    )
    model: Name | None = Field(
        default=None, title="Registered model", description="What the adapter is a version of; empty: as the route."
    )


class Plan(Values):
    """What a run does, on one platform."""

    parameters: Parameters
    window: collect.Parameters
    policy: str
    gate: specs.Gate
    engine: str
    """That has the base and accepts adapters."""
    hidden: tuple[str, ...] = ()
    """System prompts, which no answer of the evaluation may repeat."""


@dataclass(frozen=True)
class Stage:
    """A step of the DAG."""

    step: Step[Any, Any]
    about: str
    """What it does, for people."""
    parameters: Callable[[Plan, Path], Values]
    """Of the plan and of the run's folder. Blocks. Raises InvalidArgument where a step before it was not run, Conflict
    where what it was run with has changed."""


def _evaluated(plan: Plan, run: Path) -> evaluate.Parameters:
    given = plan.parameters
    require_unchanged(curate.curate.attempt(run), "golden", given.golden)  # what it keeps out is what is asked
    return evaluate.Parameters(
        name=_name(run),
        route=given.route,
        golden=given.golden,
        candidate=Candidate(adapter=load.load.of(run).name),
        suites=registry.needed(plan.gate),
        hidden=plan.hidden,
        at_once=given.at_once,
    )


def _curated(plan: Plan, run: Path) -> curate.Parameters:
    given = plan.parameters
    options = curation.Options(policy=plan.policy, unrated=given.unrated, least_examples=given.least_examples)
    return curate.Parameters(options=options, examples=given.examples, golden=given.golden)


def _trained(plan: Plan, run: Path) -> Options:
    given = plan.parameters
    return Options(base=given.base, served_as=given.served_as, **dict(given.training))


def _loaded(plan: Plan, run: Path) -> load.Parameters:
    return load.Parameters(name=plan.parameters.name, source=plan.parameters.source, engine=plan.engine)


def _recorded(plan: Plan, run: Path) -> record.Parameters:
    return record.Parameters(name=_name(run), dataset="examples" if plan.parameters.texts else "counts")


def _registered(plan: Plan, run: Path) -> register.Parameters:
    model = plan.parameters.model or plan.parameters.route
    return register.Parameters(model=model, record=_recorded(plan, run))


def _name(run: Path) -> str:
    return conversation.as_id(run.resolve().name or "retrain")


STAGES = (
    Stage(collect.collect, "the record of the window", lambda plan, run: plan.window),
    Stage(curate.curate, "a dataset out of it", _curated),
    Stage(train.train, "an adapter on the dataset", _trained),
    Stage(load.load, "the adapter beside its base", _loaded),
    Stage(evaluate.evaluate, "the golden set, of the adapter and of production", _evaluated),
    Stage(gate.gate, "the rules of the gate", lambda plan, run: gate.Parameters(gate=plan.gate)),
    Stage(record.record, "the run in MLflow", _recorded),
    Stage(register.register, "the adapter as a version of a model", _registered),
)
"""In the order in which they are run."""
STEPS = tuple(stage.step for stage in STAGES)
_IN_MLFLOW = (record.record.name, register.register.name)


def stages(parameters: Parameters) -> tuple[Stage, ...]:
    """Those of a run; `register` only once the gate was passed."""
    return tuple(stage for stage in STAGES if parameters.tracked or stage.step.name not in _IN_MLFLOW)


def parameters(values: Mapping[str, object]) -> Parameters:
    """Raises InvalidArgument for wrong ones."""
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(first_problem(error), field="retrain") from None


def plan(parameters: Parameters, factory: specs.Factory, now: datetime) -> Plan:
    """What a run does, after everything that can be checked before it was checked. Blocks.

    now: when ages of the record are counted from.

    Raises InvalidArgument, which names the parameter.
    """
    route = _route(factory, parameters.route, "route")
    window = windows.parse(parameters.since, parameters.until or None, now, route=route.name)
    if parameters.learn_from:
        several = tuple(_route(factory, name, "learn_from").name for name in parameters.learn_from)
        window = window.model_copy(update={"route": "", "routes": several})
    engine = _engine(parameters, factory)
    served = [each for name in route.models if (each := factory.model(name)) is not None]
    if not any(each.backend.type == "modelserver" and each.backend.model == engine.model for each in served):
        raise InvalidArgument(
            f"No model of the route '{route.name}' is answered by the engine '{engine.model}', so that the route "
            "cannot answer with an adapter of it. Add one to the route's models in factory.yaml.",
            field="route",
        )
    found = gate.named(factory, parameters.gate, compared=True)
    hidden = leaks.templates(factory, route.name)
    gate.require_enough(found, parameters.golden, evaluate.setup(factory, route.name, compared=True, hidden=hidden))
    return Plan(
        parameters=parameters,
        window=window,
        policy=curate.policy(factory, parameters.policy),
        gate=found,
        engine=engine.model,
        hidden=hidden,
    )


def _route(factory: specs.Factory, name: str, field: str) -> specs.Route:
    if (route := factory.route(name)) is None:
        names = ", ".join(each.name for each in factory.routes)
        raise InvalidArgument(f"There is no route '{name}' in factory.yaml; there are: {names}.", field=field)
    return route


def _engine(parameters: Parameters, factory: specs.Factory) -> Vllm:
    """The engine that serves the base. Raises InvalidArgument where none could load an adapter of it."""
    base = parameters.served_as or parameters.base
    able = [each for each in factory.engines if isinstance(each, Vllm) and each.adapters is not None]
    found = next((each for each in able if base in _names(each)), None)
    if found is None:
        names = ", ".join(f"'{each.model}' (from {each.source})" for each in able)
        others = (
            f"those that accept adapters: {names}. Give the name of one as 'served_as', or write"
            if able
            else "none does. Write"
        )
        raise InvalidArgument(
            f"No engine of factory.yaml serves '{base}' and accepts adapters; {others} the engine into "
            f"factory.yaml and start again: engines: [{{type: vllm, model: NAME, source: {parameters.base}, adapters: "
            "{max_rank: 16}}]. docs/loop.md shows the whole change.",
            field="base",
        )
    assert found.adapters is not None
    if parameters.training.lora.rank > found.adapters.max_rank:
        raise InvalidArgument(
            f"lora.rank is {parameters.training.lora.rank}, and the engine '{found.model}' accepts adapters up to "
            f"{found.adapters.max_rank}. Train with a lower rank, or raise adapters.max_rank in factory.yaml.",
            field="training",
        )
    return found


def _names(engine: Vllm) -> set[str]:
    """What adapters may name as their base, as the model server checks it."""
    hub = engine.source.removeprefix("hf://")
    return {engine.model, engine.source, *([hub, hub.partition("@")[0]] if hub != engine.source else [])}


def stored(run: Path) -> Plan | None:
    """The plan of a run that was begun; None where there is none. Blocks. Raises InvalidArgument."""
    try:
        return Plan.model_validate_json((run / PLAN).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise InvalidArgument(f"{run / PLAN} is no plan of a run. Give another folder.", field="run") from None


def begin(run: Path, wanted: Plan) -> Plan:
    """Stores the plan of a run and returns it. Blocks. Raises InvalidArgument.

    Where the run was begun with the same `since`, `until` and routes, its window stays: 30d is another one each time.
    """
    before = stored(run)
    if before is not None and _when(before.parameters) == _when(wanted.parameters):
        wanted = wanted.model_copy(update={"window": before.window})
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    if wanted != before:
        files.write(run / PLAN, wanted.model_dump_json(indent=2).encode() + b"\n")
    return wanted


def _when(parameters: Parameters) -> tuple[str, str, str, tuple[str, ...]]:
    return parameters.since, parameters.until, parameters.route, parameters.learn_from


async def run(plan: Plan, context: Context, execute: Execute, factory: Callable[[], specs.Factory]) -> bool:
    """Runs the steps in their order, and writes the run's report. Whether the gate was passed.

    factory: the one in force, whenever it is called; blocks. The adapter of a gate that was not passed is not
    registered, and unloaded unless it is named there; so is that of a gate that could not be judged.

    Raises FactoryError; the run goes on when it is called again.
    """
    passed = True
    wanted = stages(plan.parameters)
    for number, stage in enumerate(wanted, 1):
        if stage.step is register.register and not passed:
            break
        context.progress.line(f"{number}/{len(wanted)} {stage.step.name}: {stage.about}")
        given = await asyncio.to_thread(stage.parameters, plan, context.run)
        try:
            await execute(stage.step, given, context)
        except FactoryError:
            if stage.step is gate.gate:  # again, it would end alike
                context.progress.line("gate: not judged")
                await load.withdraw(context, factory)
            raise
        if stage.step is gate.gate and not (await asyncio.to_thread(gate.gate.of, context.run)).passed:
            passed = False
            context.progress.line("gate: not passed")
            await load.withdraw(context, factory)
    await asyncio.to_thread(summary.write, context.run, STEPS)
    return passed
