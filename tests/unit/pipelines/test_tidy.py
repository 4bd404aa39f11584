"""The workflow tidy without a cluster: which folders of runs it removes, and which stay."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from genaifactory_common.errors import FactoryError, Unavailable
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import load
from genaifactory_pipelines.workflows import manifests
from genaifactory_pipelines.workflows.protocol import Surroundings
from genaifactory_pipelines.workflows.registry import WORKFLOWS
from genaifactory_pipelines.workflows.tidy import LEAST_DAYS, Parameters, tidy

pytestmark = pytest.mark.allow_blocking  # a pod runs one task, and nothing waits for its loop

CREATED = datetime(2026, 11, 21, 12, tzinfo=UTC)
FACTORY = """
version: 1
tenants: [{name: acme}]
roles: [{name: user, permissions: [chat]}]
models: [{name: m, backend: {type: modelserver, model: extractive}}]
routes: [{name: chat, task: chat, models: [m]}]
policies: [{name: default}]
"""


class Serving:
    """A gateway whose model server has adapters."""

    def __init__(self, *loaded: str) -> None:
        self.loaded = set(loaded)

    async def unload_adapter(self, name: str) -> int:
        """See Gateway."""
        self.loaded.discard(name)
        return 1


class Away(Serving):
    """One that does not answer."""

    async def unload_adapter(self, name: str) -> int:
        """See Gateway."""
        raise Unavailable("x")


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """The volume of workflows."""
    factory = tmp_path / "factory.yaml"
    factory.write_text(FACTORY)
    return Surroundings("tidy-1", CREATED, tmp_path, factory)


def old_runs(around: Surroundings, adapters: dict[str, str], *, days: float) -> None:
    """Runs in which nothing was written for so many days, with the adapter that each has loaded."""
    for name, adapter in adapters.items():
        folder = around.volume / "runs" / name
        (folder / "load").mkdir(parents=True)
        outputs = load.Outputs(name=adapter, base_model="extractive", replicas=1)
        (folder / "load" / RESULT).write_text(outputs.model_dump_json())
        at = (CREATED - timedelta(days=days)).timestamp()
        for path in (folder / "load" / RESULT, folder / "load", folder):
            os.utime(path, (at, at))


async def tidied(around: Surroundings, serving: Serving, **given: int) -> dict[str, Any]:
    context = Context(around.run, cast(Gateway, serving), Progress(Console(file=StringIO())))
    task = tidy.task("tidy")
    assert task is not None
    return (await task.work(Parameters(**given), around, context)).model_dump()


def runs_of(around: Surroundings) -> set[str]:
    return {each.name for each in (around.volume / "runs").iterdir()}


async def test_old_runs_are_removed_with_what_they_have_loaded_and_others_stay(around: Surroundings) -> None:
    old_runs(around, {"old": "candidate-1", "twin": "candidate-2", "other": "candidate-3"}, days=91)
    old_runs(around, {"recent": "candidate-2"}, days=89)
    (around.volume / "inputs").mkdir()
    (around.volume / "runs" / ".removed-half").mkdir()
    elsewhere = around.volume / "elsewhere"
    elsewhere.mkdir()
    (around.volume / "runs" / "link").symlink_to(elsewhere)
    serving = Serving("candidate-1", "candidate-2", "candidate-3")
    assert await tidied(around, serving, keep_days=90) == {"removed": 3, "kept": 0}
    assert runs_of(around) == {"recent", "link"}
    assert elsewhere.is_dir()
    assert (around.volume / "inputs").is_dir()
    assert serving.loaded == {"candidate-2"}  # which a recent run has loaded as well
    assert await tidied(around, serving, keep_days=90) == {"removed": 0, "kept": 0}


@pytest.mark.parametrize(
    "named",
    [
        "adapters: {serve: [{name: candidate-1, source: /elsewhere}]}",
        "adapters: {serve: [{name: handbook, source: /mounted/runs/old/train/adapter}]}",
        "adapters: {serve: [{name: handbook, source: /mounted/runs/old}]}",
    ],
)
async def test_an_old_run_whose_adapter_is_in_use_stays(around: Surroundings, named: str) -> None:
    old_runs(around, {"old": "candidate-1", "old-too": "candidate-2"}, days=400)
    engine = f"{{type: vllm, model: llama, source: /models/x, {named}}}"
    around.factory_file.write_text(f"{FACTORY}\nengines: [{engine}, {{type: extractive}}]\n")
    serving = Serving("candidate-1", "candidate-2")
    assert await tidied(around, serving) == {"removed": 1, "kept": 1}
    assert runs_of(around) == {"old"}
    assert serving.loaded == {"candidate-1"}


async def test_a_run_in_which_one_file_was_written_lately_is_not_old(around: Surroundings) -> None:
    old_runs(around, {"old": "candidate-1"}, days=400)
    at = (CREATED - timedelta(days=1)).timestamp()
    os.utime(around.volume / "runs" / "old" / "load" / RESULT, (at, at))
    assert await tidied(around, Serving()) == {"removed": 0, "kept": 0}
    assert "old" in runs_of(around)


async def test_nothing_is_removed_while_factory_yaml_cannot_be_read_or_the_gateway_is_away(
    around: Surroundings,
) -> None:
    old_runs(around, {"old": "candidate-1"}, days=400)
    with pytest.raises(Unavailable):
        await tidied(around, Away())
    around.factory_file.write_text("routes: 1")
    with pytest.raises(FactoryError):
        await tidied(around, Serving())
    assert "old" in runs_of(around)


def test_no_workflow_that_may_still_be_retried_has_an_old_run() -> None:
    longest = max(each.deadline_seconds for each in WORKFLOWS.values())
    kept = max(
        each["spec"]["ttlStrategy"]["secondsAfterCompletion"]
        for each in map(yaml.safe_load, manifests.files().values())
        if each["kind"] == "WorkflowTemplate"
    )
    assert 2 * longest + kept < LEAST_DAYS * 86_400
    with pytest.raises(ValidationError, match="keep_days"):
        Parameters(keep_days=LEAST_DAYS - 1)
