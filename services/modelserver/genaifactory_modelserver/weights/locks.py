"""A lock that tasks and processes share by a file; whoever dies lets it go."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from genaifactory_modelserver import threads

_POLL_SECONDS = 0.1


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds the lock inside the block; waits for it as long as it takes. The file stays, empty.

    Raises OSError when the file cannot be made or the file system has no locks.
    """
    descriptors: list[int] = []  # filled in the thread, so that a cancelled wait for the thread loses none
    try:
        await threads.run(lambda _: descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)))
        while not _taken(descriptors[0]):  # noqa: ASYNC110  # another process lets it go: there is no event
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
