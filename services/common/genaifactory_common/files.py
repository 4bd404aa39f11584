"""Files that others replace while a service follows them."""

from __future__ import annotations

import os
from pathlib import Path

Fingerprint = tuple[int, int, int]


def fingerprint(path: Path) -> Fingerprint | None:
    """Another one after the file was replaced or written; None while there is none that can be looked at.

    A mounted ConfigMap or Secret changes by a symlink, an editor's file by a rename: it follows the one, and has the
    inode for the other.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
