"""Windows of the record, as commands of the pipelines name them: by --since and --until."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from genaifactory_common.errors import InvalidArgument
from genaifactory_local import monitoring
from genaifactory_pipelines.steps import collect


def parse(
    since: str, until: str | None, now: datetime, *, route: str, options: tuple[str, str] = ("--since", "--until")
) -> collect.Parameters:
    """The window between two moments, each as in monitoring.moment; without `until` it ends now.

    options: the two options, for errors. Raises InvalidArgument.
    """
    first, last = options
    start, end = monitoring.moment(since, now, first), monitoring.moment(until, now, last) if until else now
    try:
        return collect.Parameters(start=start, end=end, route=route)
    except ValidationError:
        raise InvalidArgument(f"{first} must be before {last}.", field=first) from None
