"""Limits of parsing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The bounds of parsing one document."""

    text_characters: int
    """Code points of the cleaned text."""
    pages: int
    unpacked_bytes: int
    """Of an Office file's or e-book's parts together."""
    seconds: float
    """After which a parser's process is killed."""
    memory_bytes: int
    """Address space of that process."""
