"""Checkpoints of a stage: which are whole, from which one to go on, and which are needed no more.

A checkpoint is a folder that the trainer writes file by file. A mark is put into it when all are on disk, and taken
out before any is removed: a folder without one is what a kill has left. The trainer writes over it when it comes to
that step again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genaifactory_common import files
from genaifactory_pipelines.values import Values

_PREFIX = "checkpoint-"
_MARK = "complete.json"


class Mark(Values):
    """What a whole checkpoint says of the stage."""

    finished: bool
    """Nothing is left to train."""
    loss_before: float
    """On the validation split, before the first step."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    folder: Path
    step: int
    mark: Mark


def folder_of(stage: Path, step: int) -> Path:
    """Where the trainer writes the checkpoint of a step."""
    return stage / f"{_PREFIX}{step}"


def complete(stage: Path, step: int, mark: Mark) -> None:
    """Marks a checkpoint of which all files are written, once they outlive a loss of power. Blocks. Raises OSError."""
    folder = folder_of(stage, step)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    files.write(folder / _MARK, mark.model_dump_json().encode())


def newest(stage: Path) -> Checkpoint | None:
    """The whole checkpoint of the latest step. Blocks."""
    whole = [
        Checkpoint(folder, step, Mark.model_validate_json((folder / _MARK).read_bytes()))
        for step, folder in _folders(stage)
        if (folder / _MARK).exists()
    ]
    return max(whole, key=lambda each: each.step, default=None)


def remove(stage: Path, *, but: frozenset[int]) -> None:
    """Removes the checkpoints of all other steps. Blocks."""
    for step, folder in _folders(stage):
        if step not in but:
            (folder / _MARK).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _folders(stage: Path) -> Iterator[tuple[int, Path]]:
    for folder in sorted(stage.glob(f"{_PREFIX}*")):
        yield int(folder.name.removeprefix(_PREFIX)), folder
