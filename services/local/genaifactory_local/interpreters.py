"""Interpreters with libraries that the platform's own environment does without."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genaifactory_common.errors import InvalidArgument

_FIND = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"


@dataclass(frozen=True)
class Library:
    """What a step needs, and where it is."""

    module: str
    """By which it is recognised."""
    beside: str
    """The environment beside the platform's own."""
    missing: str
    """What to do when neither has it."""


_MLFLOW = Library(
    "mlflow",
    ".venv-mlflow",
    "Runs are recorded in MLflow, which is not installed here: `make mlflow` installs it (1 GB) and opens it.",
)
OF_STEPS = {
    "train": Library(
        "trl",
        ".venv-train",
        "Training needs torch, TRL and PEFT, which are not installed here: `make train-cpu` installs them for CPUs "
        "(5 GB); with an NVIDIA GPU install genaifactory-pipelines[train].",
    ),
    "record": _MLFLOW,
    "register": _MLFLOW,
    "record_evaluation": _MLFLOW,
    "register_prompt": _MLFLOW,
}
"""By the step's name; every other step runs in the platform's own environment."""


def having(module: str, beside: str) -> Path | None:
    """The interpreter that has a module: this one, or that of the environment `beside` next to it; None: neither.

    Blocks.
    """
    if importlib.util.find_spec(module) is not None:
        return Path(sys.executable)
    other = Path(sys.prefix).parent / beside / "bin" / "python"
    if other.exists() and subprocess.run((other, "-c", _FIND, module), check=False).returncode == 0:  # noqa: S603
        return other
    return None


def of(steps: Iterable[str]) -> dict[str, Path]:
    """The interpreter of each step that needs libraries of its own, by its name.

    Blocks. Raises InvalidArgument, with everything that is missing.
    """
    found = {
        step: having(library.module, library.beside) for step in steps if (library := OF_STEPS.get(step)) is not None
    }
    if missing := [OF_STEPS[step].missing for step, interpreter in found.items() if interpreter is None]:
        raise InvalidArgument(" ".join(dict.fromkeys(missing)), field="step")
    return {step: path for step, path in found.items() if path is not None}
