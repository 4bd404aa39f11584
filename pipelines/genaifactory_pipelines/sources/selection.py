"""Which paths of a source are read, by its patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Protocol


class Patterns(Protocol):
    """Patterns of a source of factory.yaml, where '*' also matches '/'."""

    @property
    def include(self) -> tuple[str, ...]:
        """Of paths that are read."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Of paths that are not, although `include` has them."""


def is_wanted(patterns: Patterns, below: str) -> bool:
    """below: a path below the source."""
    return _matches(patterns.include, below) and not _matches(patterns.exclude, below)


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
