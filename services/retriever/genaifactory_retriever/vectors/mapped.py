"""Allocates disk blocks for files that are written through memory maps.

A file that is mapped has its full length from the beginning, as a hole. When a write reaches a page of the hole and the
disk has no block for it, there is no error to return: the kernel ends the process (SIGBUS). So blocks are allocated
before.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from genaifactory_common.space import is_full, out_of_space, read_volume

# What the writer may add beside the mapped files: new files, the log of ids, directories.
_BESIDE_BYTES = 2 << 20


def make_room(folder: Path, each_bytes: int) -> None:
    """Allocates blocks for the next `each_bytes` that are written to each file below the folder. Blocks.

    Files are written from their beginning on, so the next write is at the first hole. Raises OutOfSpace before
    anything is written.
    """
    needed = each_bytes + _BESIDE_BYTES
    if (free := read_volume(folder).free) < needed:
        raise out_of_space(folder, free, needed)
    try:
        while not _filled(folder, each_bytes):
            pass
    except OSError as error:
        if not is_full(error):
            raise
        raise out_of_space(folder, read_volume(folder).free, needed) from None


def _filled(folder: Path, each_bytes: int) -> bool:
    """False when a file has gone meanwhile: Edge renames segments of its log by a thread of its own, and a file's new
    name may not have been listed."""
    for path in [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]:
        try:
            _fill(path, each_bytes)
        except FileNotFoundError:
            if os.path.islink(path):
                raise  # it will not be there the next time either
            return False
    return True


def _fill(path: str, wanted: int) -> None:
    found = os.stat(path)
    if found.st_blocks * 512 >= found.st_size:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        position = 0
        while wanted > 0 and position < found.st_size:
            start = os.lseek(descriptor, position, os.SEEK_HOLE)
            # Blocks allocated before and not written yet: some file systems report them as a hole, some do not.
            wanted -= _zeros_before(descriptor, start, wanted)
            size = max(0, min(_end_of_hole(descriptor, start, found.st_size) - start, wanted))
            if size == 0:
                return
            os.posix_fallocate(descriptor, start, size)
            wanted, position = wanted - size, start + size
    finally:
        os.close(descriptor)


def _zeros_before(descriptor: int, end: int, at_most: int) -> int:
    data = os.pread(descriptor, min(end, at_most), end - min(end, at_most))
    return len(data) - len(data.rstrip(b"\0"))


def _end_of_hole(descriptor: int, start: int, size: int) -> int:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size  # the hole reaches the end of the file
