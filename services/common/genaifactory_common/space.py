"""Room on the disk of a service's data folder, checked once a second, so that work is refused before writes fail.

    space = Space("orchestrator", data_dir, settings.space)
    async with space.watched():
        space.require()         # before work is accepted that will be written; raises OutOfSpace
        space.release_spare()   # when there is no room for what was accepted before, and for what makes room

Two marks: below `low` it is reported (metrics, log, health), below `full` nothing new is accepted. Both states end only
when there is clearly more room again, so that they do not flap. No restart is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from prometheus_client import Counter, Gauge

from genaifactory_common import background, settings
from genaifactory_common.errors import OutOfSpace

logger = logging.getLogger(__name__)

FREE = Gauge("genaifactory_data_free_bytes", "Free on the volume of a service's data folder.", ["service"])
LOW = Gauge("genaifactory_data_space_low", "1 while that is less than the service's low mark.", ["service"])
FULL = Gauge("genaifactory_data_space_full", "1 while it is so little that nothing new is accepted.", ["service"])
REFUSED = Counter("genaifactory_out_of_space_total", "Work that was refused for lack of room on disk.", ["service"])

RETRY_SECONDS = 5.0
SPARE_FILE = "spare-room"
"""In the data folder; of `spare_bytes` without content."""

_LOOK_SECONDS = 1.0
# A state ends when there is this much more room than its mark.
_CLEARLY_MORE = 1.25
# On small volumes the marks are shares of the volume: otherwise everything would be refused.
_LOW_SHARE, _FULL_SHARE = 4, 8


class Room(IntEnum):
    """How much room there is."""

    ENOUGH = 0
    LOW = 1
    """Reported; everything is accepted."""
    FULL = 2
    """Nothing new is accepted."""


@dataclass(frozen=True)
class Volume:
    """A file system's free space and size, in bytes."""

    free: int
    """For this user."""
    size: int


def read_volume(folder: Path) -> Volume:
    """The volume that holds `folder`, or would hold it. Blocks. Raises OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return Volume(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class Space:
    """One folder's room. Its methods may be called from any thread; `look` and `release_spare` block."""

    def __init__(
        self,
        service: str,
        folder: Path,
        bounds: settings.Space,
        *,
        read: Callable[[Path], Volume] = read_volume,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """read, clock: for tests."""
        self._service = service
        self._folder = folder
        self._bounds = bounds
        self._read = read
        self._clock = clock
        self._volume = Volume(1 << 62, 1 << 62)
        self._looked_at: float | None = None
        self._spare = folder / SPARE_FILE
        self._lock = threading.Lock()
        self.room = Room.ENOUGH
        """At the last check."""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Checks once a second inside the block, and reserves the spare room whenever there is room for it."""
        await asyncio.to_thread(self._look_and_keep)
        async with background.running(self._watch(), name=f"{self._service}-space"):
            yield

    def look(self) -> Room:
        """How much room there is, at most a second ago. Blocks."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look()
        return self.room

    def require(self, more_bytes: int = 0) -> None:
        """Raises OutOfSpace unless work may be accepted that writes about `more_bytes`.

        By the last check; where a thread may wait for the disk, call `look` before.
        """
        if self.room is Room.FULL or self._volume.free - more_bytes < self._full_bytes(self._volume):
            REFUSED.labels(self._service).inc()
            raise self.error(more_bytes)

    def error(self, more_bytes: int = 0) -> OutOfSpace:
        """The error for a caller whose work is not accepted or whose write has failed."""
        needed = int(self._full_bytes(self._volume) * _CLEARLY_MORE) + more_bytes
        return out_of_space(self._folder, self._volume.free, needed)

    def release_spare(self) -> None:
        """Frees the spare room, for a write that should not fail. It is reserved again once the disk is not full.

        Blocks.
        """
        with self._lock, contextlib.suppress(OSError):
            self._spare.unlink(missing_ok=True)

    def make_way(self) -> None:
        """To be called before a deletion: on a full disk it frees the spare room. Blocks."""
        if self.look() is Room.FULL:
            self.release_spare()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self._look_and_keep)

    def _look_and_keep(self) -> None:
        self.look()
        if self.room is not Room.FULL:
            self._keep_spare()

    def _look(self) -> None:
        try:
            volume = self._read(self._folder)
        except OSError as error:  # the folder's users report one that cannot be read
            logger.warning("the room on the disk of %s cannot be determined: %s", self._folder, error.strerror)
            return
        self._volume = volume
        room = self._room(volume)
        if room is not self.room:
            log = logger.warning if room > self.room else logger.info
            log("%s", _CHANGED[room].format(service=self._service, folder=self._folder, free=readable(volume.free)))
        self.room = room
        FREE.labels(self._service).set(volume.free)
        LOW.labels(self._service).set(room >= Room.LOW)
        FULL.labels(self._service).set(room >= Room.FULL)

    def _room(self, volume: Volume) -> Room:
        for room, mark in ((Room.FULL, self._full_bytes(volume)), (Room.LOW, self._low_bytes(volume))):
            if volume.free < (mark * _CLEARLY_MORE if self.room >= room else mark):
                return room
        return Room.ENOUGH

    def _low_bytes(self, volume: Volume) -> int:
        return min(self._bounds.low_bytes, volume.size // _LOW_SHARE)

    def _full_bytes(self, volume: Volume) -> int:
        return min(self._bounds.full_bytes, volume.size // _FULL_SHARE)

    def _keep_spare(self) -> None:
        size = min(self._bounds.spare_bytes, self._full_bytes(self._volume) // 2)
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)  # at a first start the stores are opened later
                if size == 0 or (self._spare.exists() and self._spare.stat().st_size == size):
                    return
                descriptor = os.open(self._spare, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:  # the folder is not writable, which its users report
                return
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError:
                self._spare.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def require_free(folder: Path, needed_bytes: int) -> None:
    """Raises OutOfSpace when fewer bytes are free, before a store is opened or a platform starts. Blocks."""
    free = read_volume(folder).free
    if free < needed_bytes:
        raise out_of_space(folder, free, needed_bytes)


def out_of_space(folder: Path, free: int | None = None, needed: int | None = None) -> OutOfSpace:
    """The error of a full disk. free, needed: bytes, where they are known."""
    state = "is full"
    if free is not None and needed is not None:
        state = f"has too little room: {readable(free)} are free, {readable(needed)} are needed"
    return OutOfSpace(
        f"The disk that holds {folder} {state}. Make room on it, or enlarge the volume; the platform then goes on by "
        "itself.",
        retry_after_seconds=RETRY_SECONDS,
    )


def is_full(error: object) -> bool:
    """Whether an error of the system or of SQLite means that the disk has no room left."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def readable(size: int) -> str:
    """A number of bytes as text, with a unit."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


_CHANGED = {
    Room.ENOUGH: "{service}: {folder} has room again, {free} are free",
    Room.LOW: "{service}: the disk that holds {folder} is nearly full, {free} are free; make room before it is",
    Room.FULL: "{service}: the disk that holds {folder} is full, {free} are free; nothing new is accepted until there "
    "is more",
}
