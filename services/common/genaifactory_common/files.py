"""Files that others replace while a service follows them, and files that are written atomically."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Fingerprint = tuple[int, int, int]

UNFINISHED = ".*.new"
"""Pattern of the temporary files that a process which died while writing may leave."""


def fingerprint(path: Path) -> Fingerprint | None:
    """Changes whenever the file is replaced or written; None if it cannot be read.

    A mounted ConfigMap or Secret is replaced through a symlink, which is followed, an editor's file by a rename, which
    changes the inode.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces a file, or the target of a link at `path`: whole or not at all, also after a loss of power.

    Blocks. Raises OSError that names `path`.
    """
    with _replaced(path, mode) as file:
        file.write(data)


@contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` for output that a person asked for. Blocks.

    A file, or a link to one, is replaced as by `write`, with mode 0600: the link stays, and so does the former content
    if the block fails. A device, a pipe, or a file that this process has open for writing already (its standard output
    in /dev/stdout) is written in place. Raises OSError that names `path`.
    """
    descriptor = _written_in_place(path)
    with _replaced(path, 0o600) if descriptor is None else open(descriptor, "wb") as file:
        yield file


@contextmanager
def _replaced(path: Path, mode: int) -> Iterator[BinaryIO]:
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(new), str(target.parent)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written_in_place(path: Path) -> int | None:
    """A descriptor of what is written in place; None for a file that is replaced, or that does not exist yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    try:
        return _open_already(descriptor)
    finally:
        os.close(descriptor)


def _open_already(descriptor: int) -> int | None:
    """A copy of another descriptor of this process that writes to the same file; None if there is none.

    It keeps the position, or the appending, with which it was opened: by the shell, for `> file` and `>> file`.
    """
    own = os.fstat(descriptor)
    for name in os.listdir("/proc/self/fd"):
        other = int(name)
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            writes = fcntl.fcntl(other, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if other != descriptor and writes and os.path.samestat(os.fstat(other), own):
                return os.dup(other)
    return None
