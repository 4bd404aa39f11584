"""Errors of a damaged file of the platform: its path, what is lost without it, and the command that moves it away."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from genaifactory_common.errors import Unavailable


class Damaged(Unavailable):
    """A file of the platform cannot be used, and only a person may decide what happens to its content.

    The message names a path: it is for operators and the log, not for a client.
    """


def damaged(path: Path, why: str, loss: str) -> Damaged:
    """The error of a file or folder. why: the fault. loss: what is lost without it."""
    return Damaged(f"{path} cannot be used: {why}. {_remedy(loss, _moved(path))}")


def damaged_database(path: Path, why: str, loss: str) -> Damaged:
    """As `damaged`, for an SQLite file, which is moved with its log: a repair needs both."""
    folder = path.with_name(f"damaged-{_now()}")
    command = f"mkdir {_quoted(folder)} && mv {_quoted(path)}* {_quoted(folder)}"
    return Damaged(f"{path} cannot be used: {why}. {_remedy(loss, command)}")


def _remedy(loss: str, command: str) -> str:
    return f"To start without it, move it aside (this loses {loss}):   {command}"


def _moved(path: Path) -> str:
    return f"mv {_quoted(path)} {_quoted(path.with_name(f'{path.name}.damaged-{_now()}'))}"


def _now() -> str:
    """The time in a file's name, so that a second copy does not overwrite the first."""
    return time.strftime("%Y%m%d-%H%M%S")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
