"""What of a training needs none of its libraries: parameters, checkpoints, metrics, an adapter's files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genaifactory_common.errors import Unimplemented
from genaifactory_pipelines.training import adapter, checkpoints, encoding, libraries, metrics
from genaifactory_pipelines.training.checkpoints import Mark
from genaifactory_pipelines.training.encoding import Encoded
from genaifactory_pipelines.training.options import Options, Schedule
from tests.train import runs
from tests.unit.pipelines.examples import examples


def test_a_method_has_its_stages_in_their_order() -> None:
    found = {
        method: [name for name, _ in Options.model_validate({"base": "/m", "method": method}).stages()]
        for method in ("sft", "dpo", "sft+dpo")
    }
    assert found == {"sft": ["sft"], "dpo": ["dpo"], "sft+dpo": ["sft", "dpo"]}


@pytest.mark.parametrize(
    ("schedule", "examples", "steps"),
    [
        ({"epochs": 3, "batch_size": 8}, 40, 15),
        ({"epochs": 3, "batch_size": 8}, 41, 18),  # the last batch is not full
        ({"epochs": 1, "batch_size": 4, "accumulation": 4}, 41, 3),
        ({"epochs": 0.5, "batch_size": 8}, 40, 3),
        ({"epochs": 0.01, "batch_size": 8}, 1, 1),
    ],
)
def test_a_stage_has_as_many_steps_as_its_epochs_need(schedule: dict[str, Any], examples: int, steps: int) -> None:
    assert Schedule.model_validate(schedule).steps(examples) == steps


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": ""},
        {"method": "dpo+sft"},
        {"quantisation": "8bit"},
        {"max_tokens": 1},
        {"seed": -1},
        {"lora": {"rank": 0}},
        {"lora": {"rank": 513}},  # more than vLLM can serve
        {"lora": {"dropout": 1.0}},
        {"lora": {"target_modules": []}},
        {"lora": {"target_modules": "q_proj"}},
        {"sft": {"epochs": 0}},
        {"sft": {"learning_rate": float("nan")}},
        {"sft": {"learning_rate": float("inf")}},
        {"sft": {"warmup": 1.0}},
        {"sft": {"patience": 0}},
        {"sft": {"beta": 0.1}},  # it is of dpo
        {"dpo": {"beta": 0.0}},
        {"epochs": 3},
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    assert Options.model_validate({"base": "/m"}).lora.target_modules == "all-linear"
    with pytest.raises(ValidationError):
        Options.model_validate({"base": "/m", **wrong})


async def test_without_the_libraries_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    run = await asyncio.to_thread(runs.made, tmp_path, examples(8), examples(8))
    with pytest.raises(Unimplemented, match="needs torch"):
        await runs.trained(run, Options(base="/m"))
    with pytest.raises(Unimplemented, match=r"needs torch, transformers, peft, trl, .*genaifactory-pipelines\[train\]"):
        libraries.prepare("none")
    with pytest.raises(Unimplemented, match=r"trl, bitsandbytes, .*genaifactory-pipelines\[qlora\]"):
        libraries.prepare("4bit")


def test_an_example_fits_when_its_longer_output_does() -> None:
    fitting = [Encoded([1, 2], [3, 4], []), Encoded([1, 2], [3], [4, 5])]
    too_long = [Encoded([1, 2], [3, 4, 5], []), Encoded([1, 2], [3], [4, 5, 6]), Encoded([1, 2, 3, 4, 5], [], [])]
    assert encoding.that_fit([*fitting, *too_long], 4) == (fitting, 3)


def test_only_the_answer_is_learnt() -> None:
    encoded = [Encoded([1, 2], [3, 4], [5])]
    assert encoding.to_imitate(encoded) == [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}]
    assert encoding.to_prefer(encoded) == [{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}]


def written(stage: Path, step: int) -> Path:
    """A checkpoint as the trainer writes it."""
    folder = checkpoints.folder_of(stage, step)
    (folder / "ref").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "ref" / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_training_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (9, 10):
        written(tmp_path, step)
        checkpoints.complete(tmp_path, step, Mark(finished=False, loss_before=2.5))
    written(tmp_path, 11)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.step, found.mark.loss_before) == (10, 2.5)
    checkpoints.remove(tmp_path, but=frozenset({9}))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_a_checkpoint_whose_removal_was_cut_off_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        written(tmp_path, step)
        checkpoints.complete(tmp_path, step, Mark(finished=False, loss_before=2.5))

    def cut_off(path: Path) -> None:
        os.unlink(path / "adapter_model.safetensors")
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove(tmp_path, but=frozenset({1}))
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_metrics_have_our_names_and_leave_out_what_differs_from_run_to_run(tmp_path: Path) -> None:
    logged = [
        {"loss": 2.0, "learning_rate": 0.1, "grad_norm": 3.0, "epoch": 0.5, "step": 1},
        {"eval_loss": 1.5, "eval_runtime": 0.12, "epoch": 1.0, "step": 2},
        {"loss": 1.0, "rewards/margins": 0.5, "epoch": 1.0, "step": 2},
    ]
    found = metrics.points("dpo", logged)
    metrics.write(tmp_path / metrics.FILE, found)
    lines = [json.loads(line) for line in (tmp_path / metrics.FILE).read_bytes().splitlines()]
    assert lines[0] == {"step": 1, "name": "dpo/train_loss", "value": 2.0}
    assert [line["name"] for line in lines[1:]] == [
        "dpo/learning_rate", "dpo/gradient_norm", "dpo/validation_loss", "dpo/train_loss", "dpo/train_margin",
    ]  # fmt: skip
    assert metrics.series(found, "dpo/train_loss") == [(1, 2.0), (2, 1.0)]


def test_an_adapter_is_exported_whole_and_the_same_each_time(tmp_path: Path) -> None:
    about = adapter.About(base_model="tiny", data_version="sha256:1", prompt_version="", metrics={"sft/loss": 0.5})
    found = []
    for modules in (["v_proj", "q_proj"], ["q_proj", "v_proj"]):  # PEFT's order is by chance
        checkpoint = tmp_path / modules[0]
        checkpoint.mkdir()
        (checkpoint / adapter.WEIGHTS).write_bytes(b"weights")
        config = {"r": 8, "base_model_name_or_path": f"/home/me/{modules[0]}", "target_modules": modules}
        (checkpoint / adapter.CONFIG).write_text(json.dumps(config))
        (checkpoint / "optimizer.pt").touch()
        target = tmp_path / "adapter"
        (tmp_path / ".adapter.new").mkdir()  # left by a kill
        sha256 = adapter.export(checkpoint, target, about)
        assert sha256 == hashlib.sha256(b"weights").hexdigest()
        found.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert found[0] == found[1]
    assert found[0].keys() == {adapter.WEIGHTS, adapter.CONFIG, adapter.METADATA}
    assert json.loads(found[0][adapter.METADATA]) == {**about.model_dump(), "sha256": sha256}
    assert b"/home/me" not in found[0][adapter.CONFIG]
