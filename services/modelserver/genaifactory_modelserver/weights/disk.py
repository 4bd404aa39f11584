"""Files of models and adapters on this machine's disk: room for them, and errors that name a remedy."""

from __future__ import annotations

from pathlib import Path

from genaifactory_common import space
from genaifactory_common.errors import FactoryError, InvalidArgument, Unavailable

MODE = 0o666
"""Of what replicas share on one volume; the umask decides who else may read it."""


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutOfSpace when the file system of `folder` has not so many bytes free for a download; blocks."""
    space.require_free(folder, needed_bytes)


def explained(error: OSError, *, field: str) -> FactoryError:
    """The caller's error for an error of the disk."""
    if space.is_full(error):
        return space.out_of_space(Path(error.filename).parent if error.filename else Path("data_dir"))
    if isinstance(error, PermissionError):
        return InvalidArgument(f"'{error.filename}' may not be read or written by this server.", field=field)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InvalidArgument(f"'{error.filename}' is not there any more.", field=field)
    return Unavailable(f"The disk failed: {error.strerror or type(error).__name__} ('{error.filename}').")
