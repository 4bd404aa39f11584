"""A run that is killed in the middle of each step in turn comes to the same end as one that is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from genaifactory_local import testing
from genaifactory_pipelines import retrain
from genaifactory_pipelines.step import ATTEMPT, RESULT
from tests.loop import stage
from tests.loop.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHORT = {**stage.TRAINING, "sft": {**stage.SCHEDULE, "epochs": 2, "evaluate_every": 10}}
AMID = {"train": "checkpoints/*", "evaluate": "candidate.jsonl", "record": ATTEMPT, "register": ATTEMPT}
"""What is in a step's folder when it is amid its work, and is killed; the others are killed as they begin."""
STEP_SECONDS = 600
POLL_SECONDS = 0.02
TIMES = {"first_token_seconds", "seconds"}
"""Metrics that differ from run to run."""


async def killed_in(platform: Stage, arguments: list[str], run: Path, step: str) -> None:
    """Runs the command until it has begun a step, or is amid it, and kills it as a power cut would."""
    process = await testing.begun(*arguments, environment=platform.environment())
    assert process.stderr is not None
    try:
        async with asyncio.timeout(STEP_SECONDS):
            while f" {step}: " not in (line := (await process.stderr.readline()).decode()):
                assert line, f"the command has ended before {step}"
            while step in AMID and not any((run / step).glob(AMID[step])):
                assert process.returncode is None, f"the command has ended before it was amid {step}"
                await asyncio.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    if step in AMID:
        assert step not in results(run), f"{step} was done before it was killed"


def results(run: Path) -> dict[str, int]:
    """When each step's result was written, in nanoseconds, by the step's name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob(f"*/{RESULT}")}


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """What two runs on the same inputs have in common: everything but how long the answers took, and where it is."""
    metrics = {name: metric for name, metric in found["metrics"].items() if name not in TIMES}
    adapter = {name: value for name, value in found["adapter"].items() if name != "folder"}
    return {"dataset": found["dataset"], "adapter": adapter, "metrics": metrics, "candidate": found["candidate"]}


async def test_a_run_that_is_killed_in_each_step_does_nothing_twice_and_ends_as_one_that_is_not(
    platform: Stage,
) -> None:
    run = platform.folder / "killed"
    arguments = [*platform.arguments(run, SHORT, gate=stage.EASY_GATE), "--name", "killed", "--json"]
    written: dict[str, int] = {}
    for name in (each.step.name for each in retrain.STAGES):
        await killed_in(platform, arguments, run, name)
        found = await asyncio.to_thread(results, run)
        assert {step: found.get(step) for step in written} == written  # what was done is not done again
        written = found
    status, printed, errors = await platform.genaifactory(*arguments)
    assert status == 0, errors
    first = json.loads(printed)
    found = await asyncio.to_thread(results, run)
    assert {step: found[step] for step in written} == written
    assert set(found) == {each.step.name for each in retrain.STAGES}
    assert await platform.adapters() == [first["candidate"]]
    assert await asyncio.to_thread(platform.in_mlflow) == (["killed"], ["1"])
    assert first["registered"]["version"] == 1
    answered = (run / "evaluate" / "candidate.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line)["item"] for line in answered]
    assert len(items) == len(set(items)) == first["metrics"]["exact_match"]["items"]

    again = platform.arguments(platform.folder / "again", SHORT, gate=stage.EASY_GATE)
    status, printed, errors = await platform.genaifactory(*again, "--name", "killed", "--json", "--no-mlflow")
    assert status == 0, errors
    assert without_times(json.loads(printed)) == without_times(first)
    assert await platform.adapters() == [first["candidate"]]
