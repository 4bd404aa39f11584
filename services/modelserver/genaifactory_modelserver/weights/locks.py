"""A lock that tasks and processes share by a file; whoever dies lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from genaifactory_common.file_locks import file_lock
from genaifactory_modelserver import threads

_POLL_SECONDS = 0.1


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds the lock inside the block; waits for it without a limit. The file stays, empty.

    Raises OSError when the file cannot be made or the file system has no locks.
    """
    lock = file_lock(path)
    try:
        while not await threads.run(lambda _: _taken(lock)):  # noqa: ASYNC110  # another process: there is no event
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        lock.release()  # also when it was acquired by the thread after the wait was cancelled


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True
