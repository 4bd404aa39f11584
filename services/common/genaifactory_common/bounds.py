"""Bounds of what is stored and of what is read back, stated once for the gateway and for the service behind it."""

from __future__ import annotations

from genaifactory_common.errors import InvalidArgument

MAX_CORRECTION_CHARACTERS = 100_000
MAX_COMMENT_CHARACTERS = 10_000
DEFAULT_DOCUMENTS, MAX_DOCUMENTS = 100, 1000
"""On a page of a list of documents."""
DEFAULT_TEXT_CHARACTERS, MAX_TEXT_CHARACTERS = 20_000, 1_000_000
"""Of a document's text in one answer."""


def wanted(value: int, field: str, *, default: int, most: int) -> int:
    """How many of something a request wants, `default` for 0. value: not negative. Raises InvalidArgument."""
    if value > most:
        raise InvalidArgument(f"{field} must be 1 to {most}, or 0 for {default}.", field=field)
    return value or default
