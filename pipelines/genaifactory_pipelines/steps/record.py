"""record: the run in MLflow, whether its gate was passed or not, with all that it takes to make it again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genaifactory_common.errors import Conflict
from genaifactory_common.specs.gates import Gate
from genaifactory_common.specs.names import Name
from genaifactory_pipelines import environment
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.evaluation import answered, golden
from genaifactory_pipelines.evaluation.answered import Answered
from genaifactory_pipelines.evaluation.protocol import Candidate, Item
from genaifactory_pipelines.evaluation.registry import with_suites
from genaifactory_pipelines.step import ATTEMPT, RESULT, Attempt, Context, Step, require_unchanged
from genaifactory_pipelines.steps import collect, curate, evaluate, gate, train
from genaifactory_pipelines.tracking import answers, client, runs
from genaifactory_pipelines.tracking.runs import Dataset, Recorded
from genaifactory_pipelines.training import metrics
from genaifactory_pipelines.training.metrics import Point
from genaifactory_pipelines.values import PRIVATE, Values

INPUTS = "inputs"
_OF_EVERY_STEP = (environment.FILE, RESULT)
Steps = tuple[Step[Any, Any], ...]
_STEPS: Steps = (collect.collect, curate.curate, train.train, evaluate.evaluate, gate.gate)
# A file that is named in neither stays where it is: the interactions that were collected are not masked.
_COUNTS = {
    collect.collect.name: (),
    curate.curate.name: (f"{curate.DATASET}/{dataset.CARD}", f"{curate.DATASET}/{dataset.MANIFEST}"),
    train.train.name: (metrics.FILE,),
    evaluate.evaluate.name: (evaluate.SCORES,),
    gate.gate.name: (gate.REPORT,),
}
_TEXTS = {
    curate.curate.name: (
        curate.REPORT,
        *(f"{curate.DATASET}/{dataset.file_of(Path(), each)}" for each in dataset.SPLITS),
    ),
    train.train.name: (train.REPORT,),
    evaluate.evaluate.name: (evaluate.REPORT, *map(answered.file_of, answered.WHO)),
}
"""Files that hold texts of examples, of golden items and of answers to them."""
_MOST_DOCUMENTS = 1000


class Parameters(Values):
    """How the run is recorded."""

    name: str
    """Of the run, for people."""
    experiment: Name = "retrain"
    dataset: Literal["examples", "counts"] = "examples"
    """What MLflow gets: the masked examples of the dataset, the files of examples and golden items that were given, the
    answers and the reports that show them, so that the run can be made again when the record is gone; or nothing that
    holds a text of these."""
    traces: int = Field(default=200, ge=0, le=1000)
    """Items of the evaluation whose answers are traces, of the candidate and of production: those without an answer and
    those that failed by a metric of the gate first, then a sample of the others, which is the same each time. With
    `"dataset": "counts"` they have no texts."""


class Outputs(Values):
    """The run."""

    run_id: str
    """In MLflow."""


async def _record(parameters: Parameters, context: Context, folder: Path) -> Outputs:
    """Raises FactoryError. It leaves nothing in its folder."""
    return await record_steps(parameters, context, _STEPS)


async def record_steps(parameters: Parameters, context: Context, steps: Steps) -> Outputs:
    """Records what steps of a run have done, `evaluate` and `gate` among them; in their order. Raises FactoryError."""
    tracking = await asyncio.to_thread(client.from_environment, context.progress.line)
    recorded = await asyncio.to_thread(_recorded, parameters, context.run, steps)
    run_id = await runs.record(tracking, recorded)
    context.progress.line(f"record: run {run_id} of the experiment {parameters.experiment}")
    return Outputs(run_id=run_id)


def require_current(step: Step[Any, Any], run: Path) -> None:
    """Raises Conflict for a result that was made of others than are there now. Blocks."""
    needs = step.attempt(run).needs
    for needed in step.needs:
        if needs[needed.name] != needed.of(run).model_dump(mode="json"):
            raise Conflict(
                f"'{needed.name}' was run again after '{step.name}', whose result is of the former one. Run "
                f"'{step.name}' again.",
                field="run",
            )


def _recorded(parameters: Parameters, run: Path, steps: Steps) -> Recorded:
    attempts = {step.name: step.attempt(run) for step in steps}
    for step in steps:
        require_current(step, run)
    given = attempts[evaluate.evaluate.name]
    items = _answered(run)
    return Recorded(
        experiment=parameters.experiment,
        key=_key(run, steps, parameters.dataset),
        name=parameters.name,
        started=_milliseconds(run / steps[0].name / ATTEMPT),
        ended=_milliseconds(run / gate.gate.name / RESULT),
        tags=_tags(run, steps, f"{_about(items, parameters.traces)}\n"),
        parameters={name: value for step in steps for name, value in _parameters(step, attempts[step.name])},
        metrics=tuple(_metrics(run, steps)),
        dataset=_dataset(run, attempts) if curate.curate in steps else None,
        artifacts=dict(_artifacts(run, attempts, parameters.dataset == "examples")),
        traces=tuple(
            answers.traces(
                items[: parameters.traces],
                _asked(given) if parameters.dataset == "examples" else None,
                Candidate.model_validate(given.parameters["candidate"]),
                _milliseconds(run / evaluate.evaluate.name / ATTEMPT),
            )
        ),
    )


def _key(run: Path, steps: Steps, texts: str) -> str:
    """Equal results of equal attempts are one run, in whatever folder, process or pod they are recorded; with texts and
    without them they are two."""
    digest = hashlib.sha256(texts.encode())
    for step in steps:
        for name in (ATTEMPT, RESULT):
            digest.update(hashlib.sha256((run / step.name / name).read_bytes()).digest())
    return digest.hexdigest()


def _milliseconds(path: Path) -> int:
    return int(path.stat().st_mtime * 1000)


def _tags(run: Path, steps: Steps, note: str) -> dict[str, str]:
    verdict = gate.gate.of(run)
    where = {step.name: environment.of_step(run / step.name) for step in steps}
    passed = runs.PASSED if verdict.passed else f"not {runs.PASSED}"
    stopped = "".join(f"- {each.rule} {each.slice}: {each.evidence}\n" for each in verdict.failed())
    return {
        runs.GATE: passed,
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "genaifactory_pipelines",
        "mlflow.source.git.commit": where[_made(steps).name].revision,
        "mlflow.note.content": f"Gate {verdict.gate}: {passed}\n\n{stopped}\n{note}",
        **{f"genaifactory.environment.{name}": found.lock() for name, found in where.items()},
        **(_trained(run) if train.train in steps else {}),
    }


def _made(steps: Steps) -> Step[Any, Any]:
    """The step whose code counts."""
    return train.train if train.train in steps else evaluate.evaluate


def _trained(run: Path) -> dict[str, str]:
    trained = train.train.of(run)
    return {
        "genaifactory.dataset": trained.data_version,
        runs.ADAPTER: trained.sha256,
        "genaifactory.base": trained.base_model,
    }


def _parameters(step: Step[Any, Any], attempt: Attempt) -> Iterator[tuple[str, str]]:
    private = _private(step)
    yield from runs.flat({name: each for name, each in attempt.parameters.items() if name not in private}, step.name)
    for name, sha256 in attempt.files.items():
        yield f"{attempt.step}.{name}.sha256", sha256


def _private(step: Step[Any, Any]) -> set[str]:
    return {name for name, field in step.parameters.model_fields.items() if PRIVATE in field.metadata}


def _metrics(run: Path, steps: Steps) -> Iterator[Point]:
    measured, verdict = evaluate.evaluate.of(run), gate.gate.of(run)
    if train.train in steps:
        yield from metrics.read(run / train.train.name / metrics.FILE)
    if curate.curate in steps:
        curated = curate.curate.of(run)
        for split in dataset.SPLITS:
            yield Point(step=0, name=f"dataset/{split}", value=getattr(curated, split))
    for name, metric in measured.metrics.items():
        for field in ("candidate", "production", "difference", "low", "high"):
            if (value := getattr(metric, field)) is not None:
                yield Point(step=0, name=f"{name}/{field}", value=value)
    yield Point(step=0, name="gate/passed", value=float(verdict.passed))


def _dataset(run: Path, attempts: Mapping[str, Attempt]) -> Dataset:
    collected, curated = attempts[collect.collect.name], attempts[curate.curate.name]
    manifest, splits = dataset.read(run / curate.curate.name / curate.DATASET)
    lineages = [example.lineage for split in dataset.SPLITS for example in getattr(splits, split)]
    documents = Counter(document for lineage in lineages for document in lineage.documents)
    source = {
        "interactions": collect.collect.of(run).digest,
        "requests": sum(len(lineage.request_ids) for lineage in lineages),
        **collected.parameters,
        **{f"{name}.sha256": sha256 for name, sha256 in curated.files.items()},
    }
    profile = {
        **manifest.model_dump(mode="json"),
        "documents": dict(documents.most_common(_MOST_DOCUMENTS)),
        "index_versions": Counter(lineage.index_version for lineage in lineages if lineage.index_version),
    }
    return Dataset(version=manifest.version, source=json.dumps(source), profile=json.dumps(profile, ensure_ascii=False))


def _artifacts(run: Path, attempts: Mapping[str, Attempt], examples: bool) -> Iterator[tuple[str, Path]]:
    """Where they lie in the run's folder, they lie in MLflow, and files that were given below their parameters."""
    for step in _STEPS:
        if step.name not in attempts:
            continue
        attempt = () if _private(step) else (ATTEMPT,)
        texts = _TEXTS.get(step.name, ()) if examples else ()
        for name in (*attempt, *_OF_EVERY_STEP, *_COUNTS[step.name], *texts):
            file = run / step.name / name
            if file.exists():  # there are no answers of production where it was not asked
                yield f"{step.name}/{name}", file
    adapter = run / train.train.name / train.ADAPTER
    for file in sorted(adapter.iterdir()) if train.train.name in attempts else ():
        yield f"{train.train.name}/{train.ADAPTER}/{file.name}", file
    if not examples:
        return
    for given in attempts.values():
        for name in given.files:
            file = Path(given.parameters[name])
            require_unchanged(given, name, file)
            yield f"{INPUTS}/{given.step}.{name}/{file.name}", file


def _answered(run: Path) -> list[Answered]:
    """Failed ones by the metrics that the gate judges: of sentences an exact match is 0 nearly everywhere."""
    rules = Gate.model_validate(gate.gate.attempt(run).parameters["gate"]).rules
    measured = evaluate.evaluate.of(run).metrics
    better = {rule.metric: measured[rule.metric].better for rule in rules if rule.metric in measured}
    return answered.read(run / evaluate.evaluate.name, evaluate.SCORES, better)


def _about(items: Sequence[Answered], most: int) -> str:
    failed = sum(each.failed for each in items)
    return (
        f"Traces: the answers to {min(most, len(items)):,} of {len(items):,} items, the {failed:,} that failed first, "
        "then a sample of the others."
    )


def _asked(given: Attempt) -> dict[str, Item]:
    file = Path(given.parameters["golden"])
    require_unchanged(given, "golden", file)
    return {item.id: item for item in with_suites(golden.read(file), given.parameters["suites"])}


record = Step(
    "record",
    Parameters,
    Outputs,
    _record,
    needs=(curate.curate, train.train, evaluate.evaluate, gate.gate),
    acts_outside=True,
)
