"""Which paths of a source are read: by their ending and its patterns; and why others are not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Protocol

from genaifactory_common import formats


class Reason(StrEnum):
    """Why something in a source is no document."""

    HIDDEN = "hidden"
    TYPE = "of a type that is not read"
    LEAVES = "a link that leads out of the folder"
    DANGLING = "a link to nothing"
    CIRCLE = "a link in a circle"
    AGAIN = "a link to a folder that is read anyway"
    SPECIAL = "no file: a device, pipe or socket"
    LONG = f"a path of more than {formats.MAX_ID_CHARACTERS} characters"
    TWIN = "written like the name of another file"
    UNREADABLE = "not readable"


EMPTY = "is empty"
LARGE = f"is larger than {formats.MAX_DOCUMENT_BYTES >> 20} MiB"
"""Why a document cannot be read, whatever its source is; see Document.content."""


@dataclass(frozen=True)
class Skipped:
    """Something in a source that is not read; see protocol.Skipped."""

    name: str
    why: str


class Patterns(Protocol):
    """Patterns of a source of factory.yaml, where '*' also matches '/'."""

    @property
    def include(self) -> tuple[str, ...]:
        """Of paths that are read."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Of paths that are not, although `include` has them."""


def is_document(name: str) -> bool:
    """Whether files of this name are read: by its ending."""
    return PurePosixPath(name).suffix.lower() in formats.BY_ENDING


def is_wanted(patterns: Patterns, below: str) -> bool:
    """below: a path below the source."""
    return _matches(patterns.include, below) and not _matches(patterns.exclude, below)


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
