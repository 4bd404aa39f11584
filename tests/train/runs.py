"""Runs whose dataset is made here, for tests of the step train."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from genaifactory_common import files
from genaifactory_pipelines.datasets import dataset
from genaifactory_pipelines.datasets.contract import Example
from genaifactory_pipelines.datasets.splits import Splits
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.step import RESULT, Context
from genaifactory_pipelines.steps import curate
from genaifactory_pipelines.steps.train import Outputs, train
from genaifactory_pipelines.training.options import Options

_PEOPLE = ("An", "Binh", "Chi", "Dung", "Giang", "Hanh", "Khanh", "Lan", "Minh", "Nga")
_THINGS = ("laptop", "badge", "parking place", "phone")
_PLACES = ("Hue", "Da Nang", "Hanoi", "Can Tho", "Vinh", "Dalat", "Hoi An")


def questions(count: int = 40) -> list[Example]:
    """Questions whose answers cannot be guessed, each with another answer that is worse."""
    found = []
    for number in range(count):
        person, thing = _PEOPLE[number % len(_PEOPLE)], _THINGS[number // len(_PEOPLE)]
        right, wrong = _PLACES[number * 5 % 7], _PLACES[(number * 5 + 3) % 7]
        values = {
            "id": f"q-{number:03}",
            "input": f"Where is the {thing} of {person}?",
            "output": f"In {right}.",
            "rejected": f"In {wrong}.",
        }
        found.append(Example.model_validate(values))
    return found


def without_rejected(examples: Sequence[Example]) -> list[Example]:
    """The same examples as no preferences."""
    return [example.model_copy(update={"rejected": ""}) for example in examples]


def made(run: Path, train: Sequence[Example], validation: Sequence[Example]) -> Path:
    """The folder of a run, as the step curate leaves it."""
    folder = run / curate.curate.name / curate.DATASET
    unused = Example.model_validate({"id": "test-1", "input": "a", "output": "b"})
    splits = Splits(tuple(train), tuple(validation), (unused,))
    manifest = dataset.write(folder, splits, left_out={}, made_from={})
    outputs = curate.Outputs(version=manifest.version, preferences=manifest.preferences, **manifest.examples)
    files.write(folder.parent / RESULT, outputs.model_dump_json().encode())
    files.write(folder.parent / ".attempt", b"key")
    return run


def options(base: Path | str, **values: Any) -> Options:
    """For a small model and few examples: one epoch at a high rate. sft, dpo: fields of their schedules."""
    schedule = {"epochs": 1, "batch_size": 8, "learning_rate": 8e-3, "evaluate_every": 10, "patience": 100}
    fields: dict[str, Any] = {"base": str(base), "served_as": "tiny", "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
    schedules = {name: {**schedule, **values.pop(name, {})} for name in ("sft", "dpo")}
    return Options.model_validate({**fields, **schedules, **values})


async def trained(run: Path, wanted: Options, written: StringIO | None = None) -> Outputs:
    """The step's outputs. written: gets a line for each of its steps."""
    clock = itertools.count(0.0, 60.0)  # a minute goes by at each look
    progress = Progress(Console(file=written or StringIO(), width=200), clock=lambda: next(clock))
    return await train.run(wanted, Context(run, None, progress))  # type: ignore[arg-type]  # it asks no gateway


def train_now(run: Path, wanted: Options) -> Outputs:
    """Likewise, for a fixture or a process of its own."""
    return asyncio.run(trained(run, wanted))


def kill_at_first_file_in(folder: str) -> None:
    """Ends this process, as a power cut would, once it opens a file in a folder."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{folder}{os.sep}"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    kill_at_first_file_in(sys.argv[3])
    train_now(Path(sys.argv[1]), Options.model_validate_json(sys.argv[2]))
