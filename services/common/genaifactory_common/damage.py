"""What a person reads of a damaged file of the platform's own: which it is, what is lost without it, what to type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from genaifactory_common.errors import Unavailable


class Damaged(Unavailable):
    """A file of the platform's own cannot be used, and only a person may decide what becomes of what it held.

    The message names a path: it is for whoever starts the platform and for its log, not for a client.
    """


def damaged(path: Path, why: str, loss: str) -> Damaged:
    """The error of a file or folder. why: what is wrong with it. loss: what is gone without it."""
    return Damaged(f"{path} cannot be used: {why}. {_way_out(loss, _moved(path))}")


def damaged_database(path: Path, why: str, loss: str) -> Damaged:
    """As `damaged`, of an SQLite file, which is moved with its log: a repair needs both."""
    folder = path.with_name(f"damaged-{_now()}")
    command = f"mkdir {_quoted(folder)} && mv {_quoted(path)}* {_quoted(folder)}"
    return Damaged(f"{path} cannot be used: {why}. {_way_out(loss, command)}")


def _way_out(loss: str, command: str) -> str:
    return f"To start without it, move it aside (this loses {loss}):   {command}"


def _moved(path: Path) -> str:
    return f"mv {_quoted(path)} {_quoted(path.with_name(f'{path.name}.damaged-{_now()}'))}"


def _now() -> str:
    """In a name, so that a second damage does not cost the copy of the first."""
    return time.strftime("%Y%m%d-%H%M%S")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
