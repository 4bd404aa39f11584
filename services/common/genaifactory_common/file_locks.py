"""Locks that processes share through a file; the kernel releases one when its holder ends, in any way."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from filelock import FileLock

_AS_UMASK = -1
"""filelock's value for the default mode."""


def file_lock(path: Path, *, mode: int = _AS_UMASK) -> FileLock:
    """A lock that is not held yet; `acquire` raises filelock.Timeout, and OSError when the file cannot be created.

    mode: of a new file. The file stays, empty. One object holds the lock at a time, also within a process; any thread
    may release it.
    """
    # Without flock, filelock would lock by the file's existence, and a killed holder would leave the lock behind.
    return FileLock(path, mode=mode, thread_local=False, fallback_to_soft=False)


def is_held(path: Path) -> bool:
    """Whether the lock is held now. Raises OSError: FileNotFoundError when it never was.

    Tries a shared lock, which filelock does not offer: concurrent calls do not mistake each other for the holder.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
