"""Moments of the record: ages and dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import windows

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("24h", NOW - timedelta(hours=24)),
        ("7d", NOW - timedelta(days=7)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:00+07:00", datetime(2026, 11, 1, 3, tzinfo=UTC)),
    ],
)
def test_an_age_or_a_date_is_a_moment(text: str, expected: datetime) -> None:
    assert windows.moment(text, NOW, "--since") == expected


@pytest.mark.parametrize("text", ["", "yesterday", "7", "-7d", "99999999d", "2026-13-01"])
def test_any_other_text_is_refused_and_the_error_names_the_right_forms(text: str) -> None:
    with pytest.raises(InvalidArgument, match="24h or 7d"):
        windows.moment(text, NOW, "--until")


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    assert windows.bounds("7d", None, NOW) == (NOW - timedelta(days=7), None)
    assert windows.bounds(None, None, NOW) == (None, None)
    for since, until in (("7d", "8d"), ("2026-11-01", "2026-11-01")):
        with pytest.raises(InvalidArgument, match="--since must be before --until"):
            windows.bounds(since, until, NOW)


def test_an_age_before_the_first_representable_date_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        windows.moment("99999w", NOW.replace(year=1900), "--since")
