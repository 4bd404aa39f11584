"""A training that is killed goes on from its last whole checkpoint, and comes to the same weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import checksums
from genaifactory_pipelines.training.options import Options
from tests.train import runs
from tests.train.models import Asked

_PATIENCE_SECONDS = 120.0


@contextmanager
def started(run: Path, wanted: Options, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """The step in a process of its own, killed at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "tests.train.runs", str(run), wanted.model_dump_json()]
    with subprocess.Popen(command, env={**environment, **variables}) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """SIGKILL at a moment, which must come before the process has ended."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, "it has ended before"
        assert time.monotonic() < until
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def whole(stage: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    return sorted(step(mark.parent) for mark in stage.glob("checkpoint-*/complete.json"))


def being_written(stage: Path) -> bool:
    """Whether there is the beginning of a checkpoint that is newer than a whole one."""
    unfinished = [path for path in stage.glob("checkpoint-*") if not (path / "complete.json").exists()]
    return max(map(step, unfinished), default=0) > max(whole(stage), default=1000)


def step(checkpoint: Path) -> int:
    """Of its folder."""
    return int(checkpoint.name.partition("-")[2])


@pytest.fixture
def wanted(llama: Path) -> Options:
    """20 steps with dropout, so that the state of the random numbers counts, and a checkpoint after every third."""
    lora = {"rank": 8, "alpha": 16, "dropout": 0.1}
    return runs.options(llama, lora=lora, sft={"epochs": 4, "evaluate_every": 3})


async def test_a_killed_training_comes_to_the_weights_of_one_that_was_not(wanted: Options, tmp_path: Path) -> None:
    examples = runs.without_rejected(runs.questions())
    straight = await runs.trained(runs.made(tmp_path / "straight", examples, examples[:8]), wanted)
    killed = runs.made(tmp_path / "killed", examples, examples[:8])
    stage = killed / "train" / "checkpoints" / "sft"
    with socket.create_server(("127.0.0.1", 0)) as hub:  # nobody is called: TRL would report this machine
        hub.settimeout(0.5)
        with started(killed, wanted, HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}") as process:
            await asyncio.to_thread(kill_when, process, lambda: being_written(stage))
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(hub.accept)
    assert being_written(stage)
    assert await runs.trained(killed, wanted) == straight
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/metadata.json"):
        one, other = (tmp_path / run / "train" / name for run in ("straight", "killed"))
        assert await asyncio.to_thread(one.read_bytes) == await asyncio.to_thread(other.read_bytes), name
    curves = [tmp_path / run / "train" / "metrics.jsonl" for run in ("straight", "killed")]
    assert len({await asyncio.to_thread(path.read_bytes) for path in curves}) == 1


async def test_what_is_finished_is_not_trained_again(llama: Path, tmp_path: Path) -> None:
    base = await asyncio.to_thread(shutil.copytree, llama, tmp_path / "base")
    examples = runs.without_rejected(runs.questions(16))
    run = runs.made(tmp_path / "run", examples, examples[:8])
    wanted = runs.options(base)
    last = run / "train" / "checkpoints" / "sft" / "checkpoint-2" / "complete.json"
    with started(run, wanted) as process:
        await asyncio.to_thread(kill_when, process, last.exists)
    assert not await asyncio.to_thread((run / "train" / "result.json").exists)
    await asyncio.to_thread((base / "model.safetensors").unlink)  # nothing can be trained any more
    outputs = await runs.trained(run, wanted)
    weights = run / "train" / "adapter" / "adapter_model.safetensors"
    assert outputs.sha256 == await asyncio.to_thread(checksums.of_file, weights, Stop())


async def test_two_trainings_have_the_same_weights_and_another_seed_has_others(llama: Path, tmp_path: Path) -> None:
    examples = runs.without_rejected(runs.questions(16))
    found = [
        await runs.trained(runs.made(tmp_path / str(number), examples, examples[:8]), runs.options(llama, seed=seed))
        for number, seed in enumerate((7, 7, 8))
    ]
    assert found[0].sha256 == found[1].sha256 != found[2].sha256


async def test_a_training_stops_when_nothing_gets_better_and_the_best_is_exported(llama: Path, tmp_path: Path) -> None:
    examples = runs.without_rejected(runs.questions())
    answers = [each.messages[1] for each in examples[3:11]]  # of other questions: to learn is to get worse at them
    wrong = [
        each.model_copy(update={"messages": (each.messages[0], answer)})
        for each, answer in zip(examples[:8], answers, strict=True)
    ]
    run = runs.made(tmp_path, examples, wrong)
    outputs = await runs.trained(run, runs.options(llama, sft={"epochs": 20, "evaluate_every": 10, "patience": 2}))
    stage = outputs.stages["sft"]
    assert stage.stopped_early
    assert stage.steps == stage.best_step + 20 < 100
    assert stage.loss_after == pytest.approx(Asked(llama, run / "train" / "adapter").loss(wrong), rel=1e-3)


async def test_a_cancelled_training_ends_within_a_step_and_keeps_its_checkpoints(llama: Path, tmp_path: Path) -> None:
    examples = runs.without_rejected(runs.questions())
    run = runs.made(tmp_path, examples, examples[:8])
    stage = run / "train" / "checkpoints" / "sft"
    task = asyncio.create_task(runs.trained(run, runs.options(llama, sft={"epochs": 200, "evaluate_every": 1})))
    while not await asyncio.to_thread(whole, stage):
        await asyncio.sleep(0.05)
        assert not task.done()
    task.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await task
    kept = await asyncio.to_thread(whole, stage)
    assert kept
    await asyncio.sleep(1)
    assert await asyncio.to_thread(whole, stage) == kept  # no thread goes on
    assert not await asyncio.to_thread((run / "train" / "adapter").exists)
