"""A run of the pipeline as one run of MLflow, whoever records it and however often."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genaifactory_common.errors import Conflict, InvalidArgument, NotFound
from genaifactory_pipelines.tracking import traces
from genaifactory_pipelines.tracking.client import GONE, Tracking, unless
from genaifactory_pipelines.tracking.traces import Trace
from genaifactory_pipelines.training.metrics import Point
from genaifactory_pipelines.values import Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Item = TypeVar("Item")

KEY = "genaifactory.run"
"""Tag: what the run is found by."""
CONTENT = "genaifactory.content"
"""Tag: the digest of all that a run has, once it has it."""
ADAPTER = "genaifactory.adapter"
"""Tag of a run that has trained one: the SHA-256 of its weights."""
GATE = "genaifactory.gate"
"""Tag: "passed" or "not passed"."""
PASSED = "passed"
RUN_ID = "run_id"
"""File, in what was fetched of a run, with its id."""
_ATTEMPTS = 5
_BATCH = 100
"""Parameters, or metrics, of one request."""
_TRACES = 20
"""Of one request: each holds texts."""
_LONGEST_VALUE = 6000
_LONGEST_DIGEST = 36
_FINISHED = "FINISHED"
_MEASURED = ("/candidate", "/production", "/difference")


class Dataset(Values):
    """What was trained on."""

    version: str
    source: str
    """JSON: where it comes from."""
    profile: str
    """JSON: what it holds."""


class Recorded(Values):
    """A run of the pipeline as MLflow is to have it; equal ones are one run."""

    experiment: str
    key: str
    """The same for the same results of the same steps."""
    name: str
    started: int
    ended: int
    """Milliseconds since 1970."""
    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: tuple[Point, ...]
    dataset: Dataset | None
    """None for a run that has trained nothing."""
    artifacts: dict[str, Path]
    """Files by their paths in the run."""
    traces: tuple[Trace, ...] = ()
    """Of answers in the evaluation."""


class Summary(Values):
    """A run of MLflow in a few words."""

    name: str
    experiment: str
    started: datetime
    gate: str
    """"passed" or "not passed"; empty where the platform has not recorded it."""
    metrics: dict[str, float]
    """Of the evaluation: "exact_match/candidate", "/production", "/difference"."""


async def summary(tracking: Tracking, run_id: str) -> Summary | None:
    """What a run has measured; None where MLflow has it no more. Raises FactoryError."""
    return await tracking.call(partial(_summary, run_id=run_id))


async def record(tracking: Tracking, recorded: Recorded) -> str:
    """The id of the run in MLflow, which then has all that was recorded. Raises FactoryError.

    Nothing is written to a run that has it already.

    Of two processes that create the run at once both write to the same one in the end: when there are two, the one that
    is finished is kept, else the one with the lowest id, and a writer whose run was deleted begins again.
    """
    experiment = await tracking.call(partial(_experiment, name=recorded.experiment, artifacts=tracking.artifacts))
    for _ in range(_ATTEMPTS):
        run_id = await tracking.call(partial(_found_or_created, experiment=experiment, recorded=recorded))
        try:
            await _write(tracking, experiment, run_id, recorded)
        except (InvalidArgument, NotFound):
            if await tracking.call(partial(_found, experiment=experiment, recorded=recorded)) == run_id:
                raise
            continue
        if await tracking.call(partial(_found, experiment=experiment, recorded=recorded)) == run_id:
            return run_id
    raise Conflict(f"Other processes delete the run '{recorded.name}' in MLflow while it is recorded.", field="run")


async def fetch(tracking: Tracking, run_id: str, folder: Path, names: Sequence[str]) -> None:
    """Replaces a folder with those of a run's artifacts that are in folders with these names. Raises FactoryError.

    NotFound when there is no such run, or when it was not recorded by this platform; InvalidArgument when it has
    trained nothing, or when the folder holds something else.
    """
    await asyncio.to_thread(_require_own, folder, names)
    if re.fullmatch(r"[0-9A-Za-z]{1,64}", run_id) is None:
        raise NotFound(f"'{run_id[:64]}' is not the id of a run in MLflow: 32 hex digits.", field="run_id")
    await tracking.call(partial(_require_trained, run_id=run_id))
    await tracking.call(partial(_download, run_id=run_id, folder=folder, names=names))


def _require_own(folder: Path, names: Sequence[str]) -> None:
    if not folder.exists():
        return
    found = {each.name for each in folder.iterdir()} if folder.is_dir() else {folder.name}
    if found and (RUN_ID not in found or found - {RUN_ID, *names}):
        raise InvalidArgument(
            f"{folder} holds other files than what was fetched of a run, which would be deleted. Give another folder.",
            field="--output",
        )


def _require_trained(client: MlflowClient, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == GONE:
            raise NotFound(f"MLflow has no run {run_id}.", field="run_id") from None
        raise
    if KEY not in run.data.tags or run.info.status != _FINISHED:
        raise NotFound(f"The run {run_id} is not one that the step record has recorded to the end.", field="run_id")
    if ADAPTER not in run.data.tags:
        raise InvalidArgument(
            f"The run {run_id} is an evaluation, which has trained nothing. Give a run of the experiment 'retrain'.",
            field="run_id",
        )


def _summary(client: MlflowClient, run_id: str) -> Summary | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == GONE:
            return None
        raise
    return Summary(
        name=run.info.run_name or "",
        experiment=client.get_experiment(run.info.experiment_id).name,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        gate=run.data.tags.get(GATE, ""),
        metrics={name: value for name, value in sorted(run.data.metrics.items()) if name.endswith(_MEASURED)},
    )


def _download(client: MlflowClient, run_id: str, folder: Path, names: Sequence[str]) -> None:
    new = folder.with_name(f".{folder.name}.new")
    for path in (new, folder):
        shutil.rmtree(path, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    for found in client.list_artifacts(run_id):
        if found.path in names:
            client.download_artifacts(run_id, found.path, str(new))
    (new / RUN_ID).write_text(run_id, encoding="ascii")
    new.rename(folder)


def fetched(folder: Path) -> str:
    """The id of the run whose artifacts a folder has; empty where it has none. Blocks."""
    try:
        return (folder / RUN_ID).read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


async def _write(tracking: Tracking, experiment: str, run_id: str, recorded: Recorded) -> None:
    """Every part may be there already: a process that was killed has written it, or all of them are."""
    content = await asyncio.to_thread(_content, recorded)
    if await tracking.call(partial(_has, run_id=run_id, content=content)):
        return
    for parameters in _batches(recorded.parameters.items()):
        await tracking.call(partial(_log_parameters, run_id=run_id, parameters=parameters))
    for points in _batches(recorded.metrics):
        await tracking.call(partial(_log_metrics, run_id=run_id, points=points, time=recorded.started))
    if recorded.dataset is not None:
        await tracking.call(partial(_log_dataset, run_id=run_id, dataset=recorded.dataset))
    for path, file in recorded.artifacts.items():
        await tracking.call(partial(_log_artifact, run_id=run_id, path=path, file=file))
    log = partial(traces.log, experiment=experiment, run_id=run_id, key=recorded.key)
    for batch in _batches(recorded.traces, _TRACES):
        await tracking.call(partial(log, traces=batch))
    await tracking.call(partial(_finish, run_id=run_id, recorded=recorded, content=content))


def _content(recorded: Recorded) -> str:
    """What is in the files follows from the key."""
    digest = hashlib.sha256(recorded.model_dump_json(exclude={"artifacts"}).encode())
    digest.update(json.dumps(sorted(recorded.artifacts)).encode())
    return digest.hexdigest()


def _has(client: MlflowClient, run_id: str, content: str) -> bool:
    """Whether a run has all that is to be recorded. One with another content is not whole until it is written."""
    run = client.get_run(run_id)
    before = run.data.tags.get(CONTENT, "")
    if before == content:
        return bool(run.info.status == _FINISHED)
    if before:
        client.set_tag(run_id, CONTENT, "")
    return False


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts and f"{artifacts}/{name}"))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process may have made it
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise InvalidArgument(
            f"The experiment '{name}' was deleted in MLflow. Restore it there, or take another name.",
            field="experiment",
        )
    return str(found.experiment_id)


def _found_or_created(client: MlflowClient, experiment: str, recorded: Recorded) -> str:
    if _of_key(client, experiment, recorded.key) == []:
        tags = {**recorded.tags, KEY: recorded.key}  # in one transaction with the run itself
        client.create_run(experiment, start_time=recorded.started, tags=tags, run_name=recorded.name)
    return _found(client, experiment, recorded)


def _found(client: MlflowClient, experiment: str, recorded: Recorded) -> str:
    """The run that is kept; others with the same key are deleted."""
    runs = _of_key(client, experiment, recorded.key)
    if not runs:
        raise NotFound(f"The run '{recorded.name}' was deleted in MLflow.", field="run")
    kept, *others = sorted(runs, key=lambda run: (run.info.status != _FINISHED, run.info.run_id))
    for other in others:
        with unless(GONE):
            client.delete_run(other.info.run_id)
    return str(kept.info.run_id)


def _of_key(client: MlflowClient, experiment: str, key: str) -> list[Run]:
    return list(client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=100))


def _log_parameters(client: MlflowClient, run_id: str, parameters: Sequence[tuple[str, str]]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, value[:_LONGEST_VALUE]) for name, value in parameters])


def _log_metrics(client: MlflowClient, run_id: str, points: Sequence[Point], time: int) -> None:
    """With one time for all, a metric that is logged again is the same one."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(point.name, point.value, time, point.step) for point in points])


def _log_dataset(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    digest = dataset.version.removeprefix("sha256:")[:_LONGEST_DIGEST]
    entity = Entity("curated", digest, "genaifactory", dataset.source, profile=dataset.profile)
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def _log_artifact(client: MlflowClient, run_id: str, path: str, file: Path) -> None:
    folder, _, name = path.rpartition("/")
    if file.name != name:
        raise ValueError(f"{path} must end with the name of {file}")
    client.log_artifact(run_id, str(file), folder or None)


def _finish(client: MlflowClient, run_id: str, recorded: Recorded, content: str) -> None:
    client.update_run(run_id, name=recorded.name)
    for name, value in {**recorded.tags, CONTENT: content}.items():
        client.set_tag(run_id, name, value)
    client.set_terminated(run_id, _FINISHED, recorded.ended)


def flat(values: Mapping[str, Any], within: str) -> Iterator[tuple[str, str]]:
    """Fields of parameters by their paths, "train.sft.epochs"; lists as JSON is."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{within}.{name}")
        else:
            yield f"{within}.{name}", str(value)


def _batches(items: Any, size: int = _BATCH) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
