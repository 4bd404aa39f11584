"""Moments and windows of the record, as commands and workflows name them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.steps import collect

_AGE = re.compile(r"(\d{1,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, now: datetime, option: str) -> datetime:
    """Parses an age ("90m", "24h", "7d", "2w") or an ISO date or time, in UTC unless it has an offset.

    Raises InvalidArgument.
    """
    try:
        if match := _AGE.fullmatch(text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        value = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"'{text}' is not a time. Give an age like 24h or 7d, or a date like 2026-11-21.", field=option
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def bounds(since: str | None, until: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """The two ends of a window, each as of `moment`, where they are given. Raises InvalidArgument."""
    start = moment(since, now, "--since") if since else None
    end = moment(until, now, "--until") if until else None
    if start is not None and end is not None and start >= end:
        raise _in_wrong_order("--since", "--until")
    return start, end


def parse(
    since: str, until: str | None, now: datetime, *, route: str, options: tuple[str, str] = ("--since", "--until")
) -> collect.Parameters:
    """The window between two moments, each as of `moment`; without `until` it ends now.

    options: the names of the two, for errors. Raises InvalidArgument.
    """
    first, last = options
    start, end = moment(since, now, first), moment(until, now, last) if until else now
    try:
        return collect.Parameters(start=start, end=end, route=route)
    except ValidationError:
        raise _in_wrong_order(first, last) from None


def _in_wrong_order(first: str, last: str) -> InvalidArgument:
    return InvalidArgument(f"{first} must be before {last}.", field=first)
