"""Bounds of what is stored and of what is read back, for the gateway and the service behind it."""

from __future__ import annotations

from genaifactory_common.errors import InvalidArgument

MAX_CORRECTION_CHARACTERS = 100_000
MAX_COMMENT_CHARACTERS = 10_000
DEFAULT_DOCUMENTS, MAX_DOCUMENTS = 100, 1000
"""Documents on a page of a list."""
DEFAULT_TEXT_CHARACTERS, MAX_TEXT_CHARACTERS = 20_000, 1_000_000
"""Characters of a document's text in one answer."""


def wanted(value: int, field: str, *, default: int, most: int) -> int:
    """The number that a request asks for, `default` for 0. value: not negative. Raises InvalidArgument."""
    if value > most:
        raise InvalidArgument(f"{field} must be 1 to {most}, or 0 for {default}.", field=field)
    return value or default
