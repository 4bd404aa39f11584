"""Files of models and adapters on this machine's disk: room for them, and errors that say what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable

MODE = 0o666
"""Of what replicas share on one volume; the umask decides who else may read it."""


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises Unavailable when the file system of `folder` has not so many bytes free; blocks."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise Unavailable(
            f"{needed_bytes} more bytes have to be downloaded, and {free} are free in {folder}: make room, or set "
            "data_dir to a larger disk."
        )


def explained(error: OSError, *, field: str) -> FactoryError:
    """What the caller is told of an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable("The disk is full: make room, or set data_dir to a larger one. What is there is kept.")
    if isinstance(error, PermissionError):
        return InvalidArgument(f"'{error.filename}' may not be read or written by this server.", field=field)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InvalidArgument(f"'{error.filename}' is not there any more.", field=field)
    return Unavailable(f"The disk failed: {error.strerror or type(error).__name__} ('{error.filename}').")
