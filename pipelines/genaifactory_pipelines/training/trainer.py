"""One stage of a training, by TRL: it goes on from the newest whole checkpoint, and stops when nothing gets better."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from genaifactory_common.errors import Cancelled, InvalidArgument
from genaifactory_pipelines.progress import Report
from genaifactory_pipelines.training import base, checkpoints
from genaifactory_pipelines.training.base import Base
from genaifactory_pipelines.training.checkpoints import Checkpoint, Mark
from genaifactory_pipelines.training.options import Options, Preference
from genaifactory_pipelines.training.stages import Stage


@dataclass(frozen=True)
class Trained:
    """What came of a stage."""

    adapter: Path
    """Folder of the checkpoint with the lowest loss on the validation split."""
    loss_before: float
    loss_after: float
    """On the validation split."""
    steps: int
    best_step: int
    """The adapter's."""
    stopped_early: bool
    logged: list[dict[str, Any]]
    """The trainer's log; `metrics.points` reads it."""


def train(
    stage: Stage,
    found: Base,
    options: Options,
    folder: Path,
    before: Path | None,
    report: Report,
    stop: threading.Event,
) -> Trained:
    """Trains until the stage's end. Blocks.

    folder: of the stage's checkpoints, which an attempt before may have left. before: the adapter of the stage before.
    Raises InvalidArgument when the loss is not a number any more, Cancelled once `stop` is set.
    """
    last = checkpoints.newest(folder)
    if last is None or not last.mark.finished:
        trainer = _trainer(stage, found, options, folder, before)
        loss_before = last.mark.loss_before if last else _loss(stage, trainer)
        trainer.add_callback(_Watch(stage, folder, loss_before, report, stop))
        trainer.train(resume_from_checkpoint=str(last.folder) if last else None)
        last = checkpoints.newest(folder)
    assert last is not None, "the last step has a checkpoint"
    return _trained(folder, last)


def _trained(folder: Path, last: Checkpoint) -> Trained:
    state = TrainerState.load_from_json(str(last.folder / "trainer_state.json"))
    return Trained(
        adapter=checkpoints.folder_of(folder, state.best_global_step),
        loss_before=last.mark.loss_before,
        loss_after=state.best_metric,
        steps=state.global_step,
        best_step=state.best_global_step,
        stopped_early=state.global_step < state.max_steps,
        logged=state.log_history,
    )


def _loss(stage: Stage, trainer: Any) -> float:
    loss = float(trainer.evaluate()["eval_loss"])
    _require_number(stage, loss, 0)
    return loss


def _trainer(stage: Stage, found: Base, options: Options, folder: Path, before: Path | None) -> Any:
    logging.set_verbosity_error()  # the step reports by itself
    logging.disable_progress_bar()
    model = base.load(found, options.quantisation, options.lora.target_modules)
    if before is not None:
        model = PeftModel.from_pretrained(model, before, is_trainable=True)
    made: dict[str, Any] = {
        "model": model,
        "processing_class": found.tokenizer,
        "train_dataset": Dataset.from_list([dict(row) for row in stage.train]),
        "eval_dataset": Dataset.from_list([dict(row) for row in stage.validation]),
        "peft_config": _lora(options) if before is None else None,
        "callbacks": [EarlyStoppingCallback(stage.schedule.patience)],
    }
    arguments = _arguments(stage, options, folder)
    if isinstance(stage.schedule, Preference):
        trainer = _Preferring(args=DPOConfig(beta=stage.schedule.beta, **arguments), **made)
    else:
        trainer = SFTTrainer(args=SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **arguments), **made)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(stage: Stage, options: Options, folder: Path) -> dict[str, Any]:
    schedule, gpu = stage.schedule, torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "max_steps": stage.steps,
        "per_device_train_batch_size": schedule.batch_size,
        "per_device_eval_batch_size": schedule.batch_size,
        "gradient_accumulation_steps": schedule.accumulation,
        "learning_rate": schedule.learning_rate,
        "warmup_steps": schedule.warmup,
        "max_length": None,  # what is too long was left out
        "eval_strategy": "steps",
        "eval_steps": schedule.evaluate_every,
        "save_strategy": "steps",
        "save_steps": schedule.evaluate_every,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,  # how long nothing has got better
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": options.seed,
        "bf16": gpu,
        "dataloader_pin_memory": gpu,
        "gradient_checkpointing": gpu,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _lora(options: Options) -> LoraConfig:
    lora = options.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


class _Preferring(DPOTrainer):
    """With rows that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        # TRL would encode texts by itself, with a prompt that can end elsewhere than the one that is served.
        return dataset


class _Watch(TrainerCallback):
    """Reports each step, ends what is of no use, and marks checkpoints once they are whole."""

    def __init__(self, stage: Stage, folder: Path, loss_before: float, report: Report, stop: threading.Event) -> None:
        self._stage = stage
        self._folder = folder
        self._loss_before = loss_before
        self._report = report
        self._stop = stop

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, float], **_: Any
    ) -> None:
        """Before the step is evaluated and saved."""
        for name in ("loss", "eval_loss"):
            if name in logs:
                _require_number(self._stage, logs[name], state.global_step)
        if "loss" in logs:
            self._report(state.global_step, f"loss {logs['loss']:.4f}")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What was cancelled goes no further."""
        if self._stop.is_set():
            raise Cancelled("The training was cancelled.")

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The newest checkpoint and the best stay."""
        mark = Mark(finished=control.should_training_stop, loss_before=self._loss_before)
        checkpoints.complete(self._folder, state.global_step, mark)
        checkpoints.remove(self._folder, but=frozenset({state.global_step, state.best_global_step}))


def _require_number(stage: Stage, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InvalidArgument(
            f"The loss is {loss} at step {step}, so nothing was exported. Lower the learning rate, or look whether the "
            "base's weights are damaged.",
            field=f"{stage.name}.learning_rate",
        )
