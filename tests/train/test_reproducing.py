"""A training that is made again from what was recorded of it has the same weights and metrics, bit for bit."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from genaifactory_pipelines.curation import Options as Curation
from genaifactory_pipelines.reproduce import RECORDED, Comparison, Given, reproduce
from genaifactory_pipelines.step import ATTEMPT, Context, Step
from genaifactory_pipelines.steps import collect, curate
from genaifactory_pipelines.values import Values
from tests.train import runs
from tests.unit.pipelines import tracked


async def _execute(step: Step[Any, Any], parameters: Values, context: Context) -> None:
    await step.run(parameters, context)


async def _recorded(run: Path, llama: Path) -> None:
    """A run as far as its adapter."""
    working = tracked.context(run)
    await collect.collect.run(tracked.window(), working)
    await curate.curate.run(curate.Parameters(options=Curation(policy="default")), working)
    await runs.trained(run, runs.options(llama, sft={"epochs": 2, "evaluate_every": 4}))


async def _again(folder: Path, given: Given | None = None) -> Comparison:
    return await reproduce(folder, given or Given(), tracked.context(folder), _execute)


async def test_a_recorded_training_is_made_again_bit_by_bit(llama: Path, tmp_path: Path) -> None:
    await _recorded(tmp_path / "first" / RECORDED, llama)
    found = await _again(tmp_path / "first")
    assert (found.same, found.environment) == (True, ())
    assert [row.same for row in found.rows] == [True] * 4
    assert "largest relative difference 0," in found.rows[-1].now

    await asyncio.to_thread(shutil.copytree, tmp_path / "first" / RECORDED, tmp_path / "other" / RECORDED)
    attempt = tmp_path / "other" / RECORDED / "train" / ATTEMPT
    values = json.loads(await asyncio.to_thread(attempt.read_bytes))
    values["parameters"]["seed"] = 1
    await asyncio.to_thread(attempt.write_text, json.dumps(values))
    found = await _again(tmp_path / "other")
    assert not found.same
    assert {row.what: row.same for row in found.rows} == {
        "interactions": True,
        "dataset": True,
        "adapter": False,
        "metrics of the training": False,
    }
