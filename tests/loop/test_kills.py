"""A run that is killed in the middle of each step in turn comes to the same end as one that is not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import channels
from genaifactory_local import testing
from genaifactory_pipelines import retrain
from genaifactory_pipelines.step import RESULT
from tests.loop import stage
from tests.loop.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHORT = {**stage.TRAINING, "sft": {**stage.SCHEDULE, "epochs": 2, "evaluate_every": 10}}
INTO_SECONDS = {"train": 8.0, "evaluate": 0.5}
"""How long after its begin a step is killed: amid its work; the others as they begin."""
STEP_SECONDS = 120


async def killed_in(platform: Stage, arguments: list[str], step: str) -> None:
    """Runs the command until it has begun a step, and kills it as a power cut would."""
    process = await testing.begun(*arguments, environment=platform.environment())
    assert process.stderr is not None
    try:
        async with asyncio.timeout(STEP_SECONDS):
            while f" {step}: " not in (line := (await process.stderr.readline()).decode()):
                assert line, f"the command has ended before {step}"
            await asyncio.sleep(INTO_SECONDS.get(step, 0.0))
    finally:
        process.kill()
        await process.communicate()


async def adapters(platform: Stage) -> list[str]:
    """Names of the adapters that the model server has."""
    running = platform.process.platform
    running.sign_in()
    async with channels.connect(running.endpoints.socket("modelserver")) as channel:
        stub = modelserver_pb2_grpc.ModelServiceStub(channel)
        listed = await channels.unary(stub.ListModels, modelserver_pb2.ListModelsRequest(), timeout_seconds=30)
    return [model.name for model in listed.models if model.base_model]


def results(run: Path) -> dict[str, int]:
    """When each step's result was written, in nanoseconds, by the step's name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob(f"*/{RESULT}")}


async def test_a_run_that_is_killed_in_each_step_goes_on_and_does_nothing_twice(platform: Stage) -> None:
    run = platform.folder / "killed"
    arguments = [*platform.arguments(run, SHORT, gate=stage.EASY_GATE), "--name", "killed", "--json"]
    written: dict[str, int] = {}
    for name in (each.step.name for each in retrain.STAGES):
        await killed_in(platform, arguments, name)
        found = await asyncio.to_thread(results, run)
        assert {step: found.get(step) for step in written} == written  # what was done is not done again
        written = found
    status, printed, errors = await platform.genaifactory(*arguments)
    assert status == 0, errors
    candidate = json.loads(printed)["candidate"]
    found = await asyncio.to_thread(results, run)
    assert {step: found[step] for step in written} == written
    assert set(found) == {each.step.name for each in retrain.STAGES}
    assert [name for name in await adapters(platform) if name.startswith("killed")] == [candidate]
    answered = (run / "evaluate" / "candidate.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line)["item"] for line in answered]
    assert len(items) == len(set(items)) == json.loads(printed)["metrics"]["exact_match"]["items"]
