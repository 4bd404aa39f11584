"""Locks that processes share by a file; the kernel releases one when its holder ends, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from filelock import FileLock

_AS_UMASK = -1
"""filelock's word for no mode of its own."""


def file_lock(path: Path, *, mode: int = _AS_UMASK) -> FileLock:
    """A lock that is not held yet; `acquire` raises filelock.Timeout, and OSError when the file cannot be made.

    mode: of a file that is made. The file stays, empty. Held by one object at a time, also
    within a process; any thread may release it.
    """
    # Without flock, filelock would take the file's existence for the lock, which a killed holder leaves behind.
    return FileLock(path, mode=mode, thread_local=False, fallback_to_soft=False)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock now. Raises OSError: FileNotFoundError when nobody ever did.

    With a shared lock, which filelock does not have for the same file: several that look at once do not take each
    other for the holder.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
