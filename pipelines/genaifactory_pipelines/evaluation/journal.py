"""Lines that are written down at once, so that an evaluation that was killed asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def append(output: IO[bytes], line: Mapping[str, Any]) -> None:
    """Adds a line to a file that is open for it. Blocks. Raises OSError."""
    output.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    output.flush()


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of an attempt before; a last one that was cut off is left out, and removed. Blocks. Raises OSError."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    *whole, begun = lines
    if begun:
        with file.open("r+b") as cut:
            cut.truncate(sum(len(line) + 1 for line in whole))
    return [json.loads(line) for line in whole if line]
