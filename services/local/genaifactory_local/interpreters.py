"""Interpreters with libraries that the platform's own environment does without."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

_FIND = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"


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
