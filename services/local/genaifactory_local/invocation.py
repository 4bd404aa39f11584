"""The `genaifactory` command as it is typed in the working folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_NAME = "genaifactory"


def command() -> str:
    """The command that runs this same program again, from the working folder; quoted for a shell."""
    program = Path(sys.argv[0]).absolute()
    if program.name == "__main__.py":
        return f"{_from_here(Path(sys.executable))} -m {Path(__file__).parent.name}"
    on_path = shutil.which(_NAME)
    if on_path is not None and Path(on_path).absolute() == program:
        return _NAME
    return _from_here(program)


def _from_here(program: Path) -> str:
    relative = os.path.relpath(program)
    if os.sep not in relative:
        relative = f".{os.sep}{relative}"  # a shell looks for a bare name on PATH only
    return shlex.quote(min(relative, str(program), key=len))
