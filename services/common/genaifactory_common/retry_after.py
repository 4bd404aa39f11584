"""How long an HTTP response asks its client to wait."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime


def seconds(headers: Mapping[str, str], now: float) -> float | None:
    """The wait of Retry-After, given in seconds or as an HTTP date; None if it is invalid. now: seconds since 1970."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            wait = float(value) * scale
        except ValueError:
            wait = _seconds_until(value, now)
        if math.isfinite(wait) and wait >= 0:
            return wait
    return None


def _seconds_until(http_date: str, now: float) -> float:
    try:
        date = parsedate_to_datetime(http_date)
    except ValueError:
        return math.nan
    if date.tzinfo is None:  # "-0000" and asctime dates: HTTP's are always UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
