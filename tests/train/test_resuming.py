"""A training that is killed goes on from its last whole checkpoint, and comes to the same weights."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genaifactory_modelserver.adapters import checks
from genaifactory_modelserver.threads import Stop
from genaifactory_modelserver.weights import checksums
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.steps.train import Outputs
from genaifactory_pipelines.training.options import Options
from tests.train import runs
from tests.train.models import Asked


def killed(run: Path, wanted: Options, folder: Path, **variables: str) -> None:
    """Runs the step in a process of its own, which is killed once it writes a file in a folder. Blocks."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "tests.train.runs", str(run), wanted.model_dump_json(), str(folder)]
    assert subprocess.run(command, env={**environment, **variables}, check=False).returncode == -signal.SIGKILL


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


def answered_otherwise(examples: Sequence[Example]) -> list[Example]:
    """Eight of the questions with the answers of others: who learns the examples gets worse at these."""
    answers = [example.messages[1] for example in examples[3:11]]
    return [
        example.model_copy(update={"messages": (example.messages[0], answer)})
        for example, answer in zip(examples[:8], answers, strict=True)
    ]


async def same_as_without_a_kill(
    runs_of_it: tuple[Path, Path],
    wanted: Options,
    stage: str,
    at: Callable[[Outputs], int],
    **variables: str,
) -> Outputs:
    """The outputs of a run and of one that is killed in a stage and goes on there: the same to the last bit.

    at: the step of the checkpoint that it writes when it is killed, by the outputs of the other.
    """
    straight, resumed = runs_of_it
    outputs = await runs.trained(straight, wanted)
    folder = resumed / "train" / "checkpoints" / stage
    await asyncio.to_thread(killed, resumed, wanted, folder / f"checkpoint-{at(outputs)}", **variables)
    assert await asyncio.to_thread(being_written, folder)
    last, written = (await asyncio.to_thread(whole, folder))[-1], StringIO()
    assert await runs.trained(resumed, wanted, written) == outputs
    assert re.findall(r"(\w+) steps: (\d+) of", written.getvalue())[0] == (stage, str(last + 1))
    for name in (*(f"adapter/{file}" for file in checks.FILES), "metrics.jsonl"):
        one, other = [await asyncio.to_thread((run / "train" / name).read_bytes) for run in runs_of_it]
        assert one == other, name
    return outputs


async def test_one_that_is_killed_while_it_writes_a_checkpoint(llama: Path, tmp_path: Path) -> None:
    """With dropout, for the random numbers, and while nothing gets better, so that it ends early all the same."""
    examples = runs.without_rejected(runs.questions())
    validation = answered_otherwise(examples)
    both = runs.made(tmp_path / "one", examples, validation), runs.made(tmp_path / "other", examples, validation)
    lora = {"rank": 8, "alpha": 16, "dropout": 0.1}
    wanted = runs.options(llama, lora=lora, sft={"epochs": 20, "evaluate_every": 3, "patience": 4})

    def after_the_best(outputs: Outputs) -> int:
        return outputs.stages["sft"].best_step + 6  # one whole checkpoint lies between them

    with socket.create_server(("127.0.0.1", 0)) as hub:  # nobody is called: TRL would report this machine
        hub.settimeout(0.5)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        outputs = await same_as_without_a_kill(both, wanted, "sft", after_the_best, HF_ENDPOINT=address)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(hub.accept)
    found = outputs.stages["sft"]
    assert found.stopped_early
    assert found.steps == found.best_step + 12 < 100
    best = Asked(llama, both[1] / "train" / "adapter").loss(validation)
    assert found.loss_after == pytest.approx(best, rel=1e-3)


async def test_one_that_is_killed_in_its_second_stage(llama: Path, tmp_path: Path) -> None:
    examples = runs.questions(16)
    both = runs.made(tmp_path / "one", examples, examples[:8]), runs.made(tmp_path / "other", examples, examples[:8])
    wanted = runs.options(llama, method="sft+dpo", dpo={"epochs": 3, "learning_rate": 5e-4, "evaluate_every": 1})
    outputs = await same_as_without_a_kill(both, wanted, "dpo", lambda _: 2)
    assert outputs.stages["dpo"].loss_before == pytest.approx(0.6931, abs=1e-3)


async def test_what_is_finished_is_not_trained_again(llama: Path, tmp_path: Path) -> None:
    base = await asyncio.to_thread(shutil.copytree, llama, tmp_path / "base")
    examples = runs.without_rejected(runs.questions(16))
    run = runs.made(tmp_path / "run", examples, examples[:8])
    wanted = runs.options(base)
    await asyncio.to_thread(killed, run, wanted, run / "train" / ".adapter.new")
    assert await asyncio.to_thread(whole, run / "train" / "checkpoints" / "sft") == [2]
    assert not await asyncio.to_thread((run / "train" / "adapter").exists)
    await asyncio.to_thread((base / "model.safetensors").unlink)  # nothing can be trained any more
    outputs = await runs.trained(run, wanted)
    weights = run / "train" / "adapter" / "adapter_model.safetensors"
    assert outputs.sha256 == await asyncio.to_thread(checksums.of_file, weights, Stop())


async def test_two_trainings_have_the_same_weights_and_another_seed_has_others(llama: Path, tmp_path: Path) -> None:
    examples = runs.without_rejected(runs.questions(16))
    shas, began = [], []
    for number, seed in enumerate((7, 7, 8)):
        run = runs.made(tmp_path / str(number), examples, examples[:8])
        shas.append((await runs.trained(run, runs.options(llama, seed=seed))).sha256)
        weights = await asyncio.to_thread(load_file, run / "train" / "adapter" / "adapter_model.safetensors")
        began.append(torch.cat([weights[name].flatten() for name in sorted(weights) if "lora_A" in name]))
    assert shas[0] == shas[1] != shas[2]
    # Two steps move a weight by 0.016 at most: these began otherwise, and not only saw the examples in another order.
    assert float((began[0] - began[2]).abs().mean()) > 0.03


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
