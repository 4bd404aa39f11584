"""The cluster's one node, which groups of tests in several processes use at once and which one test restarts."""

from __future__ import annotations

import fcntl
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@functools.cache
def _lock() -> IO[str]:
    return (Path(tempfile.gettempdir()) / "genaifactory-test-node.lock").open("a")


@contextmanager
def used() -> Iterator[None]:
    """Waits while another process has the node alone."""
    fcntl.flock(_lock(), fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(_lock(), fcntl.LOCK_UN)


@contextmanager
def alone() -> Iterator[None]:
    """Waits until no other process uses the node, and keeps others out inside the block. Within `used`."""
    fcntl.flock(_lock(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_lock(), fcntl.LOCK_SH)
