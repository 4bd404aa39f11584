"""The workflow retrain with MLflow: what was judged is recorded once, what was approved is registered once."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common.errors import Conflict, InvalidArgument
from genaifactory_common.specs.gates import Gate
from genaifactory_pipelines import retrain as dag
from genaifactory_pipelines import summary
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.step import ATTEMPT, RESULT
from genaifactory_pipelines.steps import load
from genaifactory_pipelines.tracking import client, runs
from genaifactory_pipelines.tracking.client import Tracking
from genaifactory_pipelines.values import Values
from genaifactory_pipelines.workflows import manifests
from genaifactory_pipelines.workflows.protocol import Surroundings
from genaifactory_pipelines.workflows.registry import WORKFLOWS
from genaifactory_pipelines.workflows.retrain import Parameters
from tests.unit.pipelines import tracked

# A pod runs one task, and nothing waits for its loop; the warning is of MLflow's store's own use of SQLAlchemy.
pytestmark = [pytest.mark.allow_blocking, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RETRAIN = WORKFLOWS["retrain"]
GIVEN = Parameters(route="chat", base="/models/x", model="support")
CANDIDATE = f"candidate-{hashlib.sha256(b'weights').hexdigest()[:12]}"
LOADED = load.Outputs(name=CANDIDATE, base_model="tiny", replicas=1)
FACTORY = """
version: 1
tenants: [{name: acme}]
roles: [{name: user, permissions: [chat]}]
models: [{name: m, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [m]}]
policies: [{name: default}]
gates: [{name: default, rules: [{metric: failed, at_most: 0}]}]
engines: [{type: vllm, model: extractive, source: /models/x, adapters: {max_rank: 16}}]
"""


class Serving:
    """A gateway whose model server has adapters."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()

    async def load_adapter(self, request: gateway_pb2.LoadAdapterRequest) -> int:
        """See Gateway."""
        self.loaded.add(request.name)
        return 1

    async def unload_adapter(self, name: str) -> int:
        """See Gateway."""
        self.loaded.discard(name)
        return 1


async def judged(
    volume: Path, *, name: str = "november", right: int = tracked.ITEMS, in_mlflow: bool = True
) -> Surroundings:
    """A run whose gate has judged. right: as for tracked.made."""
    factory = volume / "factory.yaml"
    factory.write_text(FACTORY)
    around = Surroundings(name, datetime(2026, 11, 21, 12, tzinfo=UTC), volume, factory)
    around.run.mkdir(parents=True)
    await tracked.made(around.run, right=right, candidate=CANDIDATE)
    parameters = {"route": "chat", "base": "/models/x", "gate": "default", "golden": around.run.parent / "golden.jsonl"}
    plan = dag.Plan(
        parameters=dag.parameters({**parameters, "tracked": in_mlflow, "model": "support"}),
        window=tracked.window(),
        policy="default",
        gate=Gate.model_validate(tracked.RULES),
        engine="extractive",
    )
    dag.begin(around.run, plan)
    return around


async def do(
    name: str,
    around: Surroundings,
    *,
    status: str = "",
    serving: Serving | None = None,
    given: Parameters = GIVEN,
) -> Values:
    """A task, as its pod does it."""
    task = RETRAIN.task(name)
    assert task is not None
    context = replace(tracked.context(around.run), gateway=cast(Gateway, serving or Serving()))
    return await task.work(given, replace(around, status=status), context)


async def found(tracking: Tracking) -> tuple[list[str], int]:
    """The verdict of each run in MLflow, and how many versions of the model there are."""

    def look(mlflow: Any) -> tuple[list[str], int]:
        experiments = [each.experiment_id for each in mlflow.search_experiments()]
        versions = mlflow.search_model_versions("name='support'")
        return [run.data.tags[runs.GATE] for run in mlflow.search_runs(experiments)], len(versions)

    return await tracking.call(look)


async def test_what_was_approved_is_one_run_and_one_version_however_often_pods_come_back(
    tracking: Tracking, tmp_path: Path
) -> None:
    around = await judged(tmp_path)
    outputs = await do("register", around)
    assert outputs.model_dump(include={"model", "version"}) == {"model": "support", "version": 1}
    assert await do("register", around) == outputs
    await do("finish", around, status="Succeeded")
    assert await found(tracking) == ([runs.PASSED], 1)


async def test_a_retry_of_a_registration_that_failed_ends_with_the_candidate_loaded(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around, serving = await judged(tmp_path), Serving()
    await do("load", around, serving=serving)
    assert serving.loaded == {CANDIDATE}
    with monkeypatch.context() as away:
        away.setenv(client.URI, "ftp://mlflow")
        for task in ("register", "finish"):
            with pytest.raises(InvalidArgument, match="must begin with http"):
                await do(task, around, status="Failed", serving=serving)
    assert not serving.loaded
    for task in ("register", "finish"):  # Argo leaves out what succeeded
        await do(task, around, status="Succeeded", serving=serving)
    assert serving.loaded == {CANDIDATE}
    assert await found(tracking) == ([runs.PASSED], 1)


async def test_a_run_that_was_registered_is_not_recorded_again_at_its_end(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = await judged(tmp_path)
    await do("register", around)
    monkeypatch.setenv(client.URI, "ftp://mlflow")
    await do("finish", around, status="Succeeded")
    with pytest.raises(InvalidArgument, match="must begin with http"):  # its gate may have judged again since
        await do("finish", around, status="Failed")


async def test_a_run_that_the_gate_stopped_is_recorded_and_not_registered(tracking: Tracking, tmp_path: Path) -> None:
    around = await judged(tmp_path, right=0)
    for _ in range(2):
        await do("finish", around, status="Failed")
    assert await found(tracking) == ([f"not {runs.PASSED}"], 0)
    with pytest.raises(Conflict, match="nothing is registered"):
        await do("register", around)
    assert await found(tracking) == ([f"not {runs.PASSED}"], 0)


async def test_nothing_is_recorded_before_the_gate_has_judged_nor_where_the_run_began_without_mlflow(
    tracking: Tracking, tmp_path: Path
) -> None:
    around = await judged(tmp_path, in_mlflow=False)
    await do("finish", around, status="Failed")
    early = replace(around, name="early")
    await do("finish", early, status="Failed")
    assert await found(tracking) == ([], 0)


async def test_the_page_of_a_run_is_written_where_it_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = await judged(tmp_path)
    (around.run / "load").mkdir()
    (around.run / "load" / ATTEMPT).touch()
    (around.run / "load" / RESULT).write_text(LOADED.model_dump_json())
    monkeypatch.setenv(client.URI, "ftp://mlflow")
    with pytest.raises(InvalidArgument, match="must begin with http"):
        await do("finish", around, status="Succeeded")
    assert (around.run / summary.FILE).exists()


@pytest.mark.parametrize("uri", ["", "http://factory-mlflow:5000"])
async def test_a_run_is_for_mlflow_where_the_installation_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv(client.URI, uri)
    around = await judged(tmp_path)
    (around.run / dag.PLAN).unlink()
    golden = around.input("golden.jsonl", "golden")
    golden.parent.mkdir()
    golden.write_bytes((around.run.parent / "golden.jsonl").read_bytes())
    await do("plan", around)
    plan = dag.stored(around.run)
    assert plan is not None
    assert (plan.parameters.tracked, plan.parameters.model, plan.parameters.texts) == (bool(uri), "support", True)
    await do("plan", around, given=GIVEN.model_copy(update={"texts": False}))
    plan = dag.stored(around.run)
    assert plan is not None
    assert not plan.parameters.texts


def test_only_what_was_approved_is_registered() -> None:
    task = RETRAIN.task("register")
    assert task is not None
    assert task.needs == ("decide",)


def test_no_task_needs_one_that_an_installation_without_mlflow_leaves_out() -> None:
    for workflow in WORKFLOWS.values():
        left_out = {each.name for each in workflow.tasks if getattr(each, "mlflow", False)}
        assert not left_out & {need for each in workflow.tasks for need in each.needs}
        templates = yaml.safe_load(manifests.files()[f"{workflow.name}.yaml"])["spec"]["templates"]
        marked = {each["name"] for each in templates if manifests.NEEDS in _annotations(each)}
        assert marked == left_out
    assert "register" in {each.name for each in RETRAIN.tasks if getattr(each, "mlflow", False)}


def _annotations(template: dict[str, Any]) -> dict[str, str]:
    annotations: dict[str, str] = template.get("metadata", {}).get("annotations", {})
    return annotations
