"""Parses the parameters of a URL's query; unknown ones are refused."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory_common.errors import InvalidArgument, Reason

_SHOWN = 100
_MOST_DIGITS = 10


def parameters(query: bytes, known: Sequence[str]) -> dict[str, str]:
    """The value of each known parameter; empty where it is missing. Raises InvalidArgument."""
    given = dict.fromkeys(known, "")
    for name, value in urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in given:
            raise InvalidArgument(
                f"Unknown parameter '{name[:_SHOWN]}'; known: {', '.join(known)}.",
                field=name[:_SHOWN],
                reason=Reason.UNKNOWN_FIELD,
            )
        given[name] = value
    return given


def whole_number(name: str, text: str, *, most: int) -> int:
    """A parameter from 1 to `most`; 0 where it is missing. Raises InvalidArgument."""
    if not text:
        return 0
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
    if not 1 <= number <= most:
        raise InvalidArgument(f"'{name}' must be a whole number from 1 to {most}.", field=name)
    return number


def moment(name: str, text: str) -> Timestamp | None:
    """A parameter that is a time; None where it is missing. Raises InvalidArgument."""
    if not text:
        return None
    found = Timestamp()
    try:
        found.FromJsonString(text)
    except ValueError:
        raise InvalidArgument(f"'{name}' must be a time like 2026-11-21T00:00:00Z.", field=name) from None
    return found
