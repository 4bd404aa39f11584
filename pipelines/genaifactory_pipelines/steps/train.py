"""train: a LoRA adapter that the model server loads as it is, out of the curated dataset."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genaifactory_common import background, files
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.datasets.dataset import Manifest
from genaifactory_pipelines.datasets.splits import Splits
from genaifactory_pipelines.reports import Report, lines
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import curate
from genaifactory_pipelines.training import adapter, libraries, metrics
from genaifactory_pipelines.training.metrics import Point
from genaifactory_pipelines.training.options import Options
from genaifactory_pipelines.values import Values

if TYPE_CHECKING:
    from genaifactory_pipelines.training.stages import Stage
    from genaifactory_pipelines.training.trainer import Trained

    Done = tuple[Stage, Trained]

ADAPTER = "adapter"
REPORT = "report.html"
_CHECKPOINTS = "checkpoints"
_EXAMPLES_SHOWN = 10


class Learnt(Values):
    """What came of a stage."""

    examples: dict[str, int]
    """Of each split, that it used."""
    too_long: dict[str, int]
    """Of each split, that it did not."""
    loss_before: float
    loss_after: float
    """On the validation split; of the adapter's step."""
    steps: int
    best_step: int
    """The adapter's: that with the lowest loss on the validation split."""
    stopped_early: bool


class Outputs(Values):
    """The adapter."""

    base_model: str
    """As its metadata has it."""
    data_version: str
    sha256: str
    """Of its weights, hex."""
    stages: dict[str, Learnt]


async def _train(options: Options, context: Context, folder: Path) -> Outputs:
    """Writes the adapter, the metrics and the report. Raises FactoryError."""
    stop = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(None, _run, options, context, folder, stop)
    return await background.to_the_end(work, cancelled=stop.set)


def _run(options: Options, context: Context, folder: Path, stop: threading.Event) -> Outputs:
    libraries.prepare(options.quantisation)
    from genaifactory_pipelines.training import base, stages, trainer
    from genaifactory_pipelines.training.encoding import Encoder

    manifest, splits = dataset.read(context.run / curate.curate.name / curate.DATASET)
    found = base.find(options.base)
    encoder = Encoder(found.tokenizer, found.ends)
    done: list[Done] = []
    for stage in stages.make(options, splits, encoder, min(options.max_tokens, found.context)):
        _say_too_long(context, stage)
        before = done[-1][1].adapter if done else None
        checkpoints = folder / _CHECKPOINTS / stage.name
        with context.progress.counting(f"train: {stage.name} steps", stage.steps) as report:
            trained = trainer.train(stage, found, options, checkpoints, before, report, stop)
        done.append((stage, trained))
    outputs = _export(options, manifest, splits, done, folder)
    shutil.rmtree(folder / _CHECKPOINTS)
    for name, learnt in outputs.stages.items():
        context.progress.line(
            f"train: {name}: loss on validation {learnt.loss_before:.4f} before, {learnt.loss_after:.4f} after step "
            f"{learnt.best_step:,} of {learnt.steps:,}{', stopped early' if learnt.stopped_early else ''}"
        )
    return outputs


def _say_too_long(context: Context, stage: Stage) -> None:
    for split, count in stage.too_long.items():
        if count:
            context.progress.line(f"train: {stage.name}: {count:,} examples of the {split} split are too long")


def _export(options: Options, manifest: Manifest, splits: Splits, done: Sequence[Done], folder: Path) -> Outputs:
    """Writes the files of the step."""
    measured = [point for stage, trained in done for point in _points(stage, trained)]
    about = adapter.About(
        base_model=options.served_as or options.base,
        data_version=manifest.version,
        prompt_version=options.prompt_version,
        metrics={point.name: point.value for stage, trained in done for point in _of_adapter(stage, trained)},
    )
    sha256 = adapter.export(done[-1][1].adapter, folder / ADAPTER, about)
    outputs = Outputs(
        base_model=about.base_model,
        data_version=about.data_version,
        sha256=sha256,
        stages={stage.name: _learnt(stage, trained) for stage, trained in done},
    )
    metrics.write(folder / metrics.FILE, measured)
    files.write(folder / REPORT, _report(options, manifest, splits, outputs, measured).encode(), mode=0o644)
    return outputs


def _points(stage: Stage, trained: Trained) -> list[Point]:
    before = Point(step=0, name=f"{stage.name}/validation_loss", value=trained.loss_before)
    return [before, *metrics.points(stage.name, trained.logged)]


def _of_adapter(stage: Stage, trained: Trained) -> list[Point]:
    """What was measured on the validation split at the adapter's step."""
    return [
        point
        for point in metrics.points(stage.name, trained.logged)
        if point.step == trained.best_step and point.name.startswith(f"{stage.name}/validation_")
    ]


def _learnt(stage: Stage, trained: Trained) -> Learnt:
    return Learnt(
        examples={"train": len(stage.train), "validation": len(stage.validation)},
        too_long=dict(stage.too_long),
        loss_before=trained.loss_before,
        loss_after=trained.loss_after,
        steps=trained.steps,
        best_step=trained.best_step,
        stopped_early=trained.stopped_early,
    )


def _report(options: Options, manifest: Manifest, splits: Splits, outputs: Outputs, measured: Sequence[Point]) -> str:
    report = Report("Training", f"sha256:{outputs.sha256}")
    report.text(f"An adapter for {outputs.base_model}, trained on the dataset {manifest.version}.")
    for name, learnt in outputs.stages.items():
        report.heading(f"Stage {name}")
        report.table(("", ""), _rows(learnt.model_dump()))
        for what in ("loss", "margin"):
            curves = {each: metrics.series(measured, f"{name}/{each}_{what}") for each in ("train", "validation")}
            if any(curves.values()):
                report.drawing(lines({f"{each} {what}": points for each, points in curves.items()}, x="step"))
    report.heading("Parameters")
    report.table(("parameter", "value"), _rows(options.model_dump()))
    report.heading("Examples to train on")
    shown = [(each.id, each.questions, each.output, each.rejected) for each in splits.train[:_EXAMPLES_SHOWN]]
    report.table(("id", "question", "output", "rejected"), shown)
    return report.html()


def _rows(values: Mapping[str, object], within: str = "") -> list[tuple[str, str]]:
    """The fields of Values as rows of a table; those of inner ones with the outer's name before theirs."""
    rows = []
    for name, value in values.items():
        rows += _rows(value, f"{within}{name}.") if isinstance(value, Mapping) else [(f"{within}{name}", str(value))]
    return rows


train = Step("train", Options, Outputs, _train, needs=(curate.curate,))
