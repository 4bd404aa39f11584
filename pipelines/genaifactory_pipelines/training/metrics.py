"""What a stage measured: points by step, for MLflow and for plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genaifactory_common import files
from genaifactory_pipelines.values import Values

FILE = "metrics.jsonl"

# The trainer's names and ours. It logs more, of which times differ from run to run and the rest follows from these.
_NAMES = {
    "loss": "train_loss",
    "mean_token_accuracy": "train_token_accuracy",
    "rewards/margins": "train_margin",
    "rewards/accuracies": "train_preferred",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "eval_loss": "validation_loss",
    "eval_mean_token_accuracy": "validation_token_accuracy",
    "eval_rewards/margins": "validation_margin",
    "eval_rewards/accuracies": "validation_preferred",
}


class Point(Values):
    """One value of a metric."""

    step: int
    name: str
    """"sft/train_loss". train_margin and validation_margin: by how much more the model prefers the chosen output to
    the rejected one than it did before the stage; ..._preferred: the share of pairs of which it does."""
    value: float


def points(stage: str, logged: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The metrics in the trainer's log, in its order."""
    return [
        Point(step=entry["step"], name=f"{stage}/{_NAMES[name]}", value=value)
        for entry in logged
        for name, value in entry.items()
        if name in _NAMES
    ]


def write(path: Path, found: Sequence[Point]) -> None:
    """Replaces a file with the points, as JSON lines. Blocks. Raises OSError."""
    files.write(path, b"".join(point.model_dump_json().encode() + b"\n" for point in found), mode=0o644)


def read(path: Path) -> list[Point]:
    """The points of a file. Blocks. Raises OSError, and ValueError for a file that `write` has not written."""
    return [Point.model_validate_json(line) for line in path.read_bytes().splitlines()]


def series(found: Sequence[Point], name: str) -> list[tuple[int, float]]:
    """The steps and values of one metric."""
    return [(point.step, point.value) for point in found if point.name == name]
