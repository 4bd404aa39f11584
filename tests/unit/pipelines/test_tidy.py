"""The workflow tidy without a cluster: which folders of runs it removes, and which stay."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable
from genaifactory_pipelines.gateway import Gateway
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import load
from genaifactory_pipelines.workflows import manifests
from genaifactory_pipelines.workflows.protocol import Surroundings
from genaifactory_pipelines.workflows.registry import WORKFLOWS
from genaifactory_pipelines.workflows.tidy import LEAST_DAYS, Parameters, tidy

pytestmark = pytest.mark.allow_blocking  # a pod runs one task, and nothing waits for its loop

CREATED = datetime.now(UTC)  # a folder that is named gets the time of the machine
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


def break_result(around: Surroundings, name: str, *, days: float) -> None:
    """As another version of the platform, or a disk, leaves it."""
    result = around.volume / "runs" / name / "load" / RESULT
    result.write_text('{"name": ')
    at = (CREATED - timedelta(days=days)).timestamp()
    os.utime(result, (at, at))


def name_in_factory(around: Surroundings, adapters: str) -> None:
    engine = f"{{type: vllm, model: llama, source: /models/x, {adapters}}}"
    around.factory_file.write_text(f"{FACTORY}\nengines: [{engine}, {{type: extractive}}]\n")


async def tidied(
    around: Surroundings, serving: Serving, written: StringIO | None = None, **given: int
) -> dict[str, Any]:
    context = Context(around.run, cast(Gateway, serving), Progress(Console(file=written or StringIO(), width=300)))
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
        "adapters: {serve: [{name: handbook, source: /mounted/by-sub-path/old/train/adapter}]}",
    ],
)
async def test_an_old_run_whose_adapter_is_in_use_stays(around: Surroundings, named: str) -> None:
    old_runs(around, {"old": "candidate-1", "old-too": "candidate-2", "ol": "candidate-3"}, days=400)
    name_in_factory(around, named)
    serving = Serving("candidate-1", "candidate-2", "candidate-3")
    assert await tidied(around, serving) == {"removed": 2, "kept": 1}
    assert runs_of(around) == {"old"}
    assert serving.loaded == {"candidate-1"}


async def test_a_run_stays_for_keep_days_after_factory_yaml_last_named_its_adapter(
    around: Surroundings,
) -> None:
    old_runs(around, {"before": "candidate-1"}, days=400)
    old_runs(around, {"now": "candidate-2"}, days=3)
    serving = Serving("candidate-1", "candidate-2")
    name_in_factory(around, "adapters: {serve: [{name: candidate-1, source: /elsewhere}]}")
    await tidied(around, serving, keep_days=90)
    name_in_factory(around, "adapters: {serve: [{name: candidate-2, source: /elsewhere}]}")
    for night in (1, 89):
        later = replace(around, created=CREATED + timedelta(days=night))
        assert await tidied(later, serving, keep_days=90) == {"removed": 0, "kept": 0}
    assert serving.loaded == {"candidate-1", "candidate-2"}
    later = replace(around, created=CREATED + timedelta(days=91))
    assert await tidied(later, serving, keep_days=90) == {"removed": 1, "kept": 1}
    assert runs_of(around) == {"now"}
    assert serving.loaded == {"candidate-2"}


async def test_a_recent_run_that_is_named_counts_from_then_also_when_the_night_fails(around: Surroundings) -> None:
    old_runs(around, {"gone": "candidate-1"}, days=400)
    old_runs(around, {"named": "candidate-2"}, days=89)
    name_in_factory(around, "adapters: {serve: [{name: candidate-2, source: /elsewhere}]}")
    with pytest.raises(Unavailable):
        await tidied(around, Away(), keep_days=90)
    around.factory_file.write_text(FACTORY)
    later = replace(around, created=CREATED + timedelta(days=2))
    assert await tidied(later, Serving(), keep_days=90) == {"removed": 1, "kept": 0}
    assert runs_of(around) == {"named"}


async def test_an_old_run_whose_adapter_cannot_be_read_stays(around: Surroundings) -> None:
    old_runs(around, {"broken": "candidate-1", "old": "candidate-2"}, days=400)
    break_result(around, "broken", days=400)
    written = StringIO()
    serving = Serving("candidate-1", "candidate-2")
    assert await tidied(around, serving, written) == {"removed": 1, "kept": 1}
    assert runs_of(around) == {"broken"}
    assert serving.loaded == {"candidate-1"}
    assert "broken stays: its load/result.json cannot be read" in written.getvalue()


async def test_nothing_is_removed_while_the_adapter_of_a_recent_run_cannot_be_read(around: Surroundings) -> None:
    old_runs(around, {"old": "candidate-1"}, days=400)
    old_runs(around, {"recent": "candidate-1"}, days=3)
    break_result(around, "recent", days=3)
    serving = Serving("candidate-1")
    with pytest.raises(InvalidArgument, match=r"recent has a load/result\.json that cannot be read"):
        await tidied(around, serving)
    assert runs_of(around) == {"old", "recent"}
    assert serving.loaded == {"candidate-1"}


async def test_a_run_in_which_one_file_was_written_lately_is_not_old(around: Surroundings) -> None:
    old_runs(around, {"old": "candidate-1"}, days=400)
    at = (CREATED - timedelta(days=1)).timestamp()
    os.utime(around.volume / "runs" / "old" / "load" / RESULT, (at, at))
    assert await tidied(around, Serving()) == {"removed": 0, "kept": 0}
    assert "old" in runs_of(around)


async def test_no_run_with_an_adapter_is_removed_while_factory_yaml_cannot_be_read_or_the_gateway_is_away(
    around: Surroundings,
) -> None:
    old_runs(around, {"evaluated": "", "old": "candidate-1"}, days=400)
    (around.volume / "runs" / "evaluated" / "load" / RESULT).unlink()
    (around.volume / "runs" / "evaluated" / "load").rmdir()
    at = (CREATED - timedelta(days=400)).timestamp()
    os.utime(around.volume / "runs" / "evaluated", (at, at))
    with pytest.raises(Unavailable):
        await tidied(around, Away())
    assert runs_of(around) == {"old"}
    around.factory_file.write_text("routes: 1")
    with pytest.raises(FactoryError):
        await tidied(around, Serving())
    assert runs_of(around) == {"old"}


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
