"""Files of models and adapters on disk: room for them, reading of small ones, and errors that name a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genaifactory_common import space
from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable

MODE = 0o666
"""Of what replicas share on one volume; the umask decides who else may read it."""


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutOfSpace when the file system of `folder` has not so many bytes free for a download; blocks."""
    space.require_free(folder, needed_bytes)


def read_at_most(path: Path, max_bytes: int, *, field: str) -> bytes:
    """The content of a small file; blocks. Raises InvalidArgument when it is not small."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidArgument(f"'{path.name}' is larger than {max_bytes} bytes.", field=field)
    return data


def read_object(path: Path, max_bytes: int, *, field: str) -> dict[str, Any] | None:
    """The JSON object in a small file; None when it holds something else. Blocks. Raises as `read_at_most`."""
    try:
        parsed = json.loads(read_at_most(path, max_bytes, field=field))
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def explained(error: OSError, *, field: str) -> FactoryError:
    """The caller's error for an error of the disk."""
    if space.is_full(error):
        return space.out_of_space(Path(error.filename).parent if error.filename else Path("data_dir"))
    if isinstance(error, PermissionError):
        return InvalidArgument(f"'{error.filename}' may not be read or written by this server.", field=field)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InvalidArgument(f"'{error.filename}' is not there any more.", field=field)
    return Unavailable(f"The disk failed: {error.strerror or type(error).__name__} ('{error.filename}').")
