"""Compares the arms of a split with one of them: differences of shares and of mean times, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common import specs

_Z = NormalDist().inv_cdf(0.975)
_LEAST_TIMED = 30
"""With fewer times in one of the two, the normal distribution says too little about their means."""


@dataclass(frozen=True)
class Times:
    """A sample of times."""

    number: int = 0
    mean_seconds: float = 0.0
    deviation_seconds: float = 0.0

    def with_(self, other: Times) -> Times:
        """Both samples as one."""
        number = self.number + other.number
        if not (self.number and other.number):
            return self if self.number else other
        mean = (self.number * self.mean_seconds + other.number * other.mean_seconds) / number
        squares = sum(
            max(each.number - 1, 0) * each.deviation_seconds**2 + each.number * (each.mean_seconds - mean) ** 2
            for each in (self, other)
        )
        return Times(number, mean, math.sqrt(squares / (number - 1)))


@dataclass(frozen=True)
class Arm:
    """What one arm did in a period."""

    name: str
    requests: int
    failed: int
    blocked: int
    refused: int
    first_token: Times
    duration: Times
    rated_up: int
    rated_down: int

    @property
    def failed_share(self) -> float:
        """Of its requests."""
        return self.failed / self.requests


@dataclass(frozen=True)
class Difference:
    """An arm's value less that of the arm that it is compared with, and its 95 % interval."""

    estimate: float
    low: float
    high: float


def of_split(rows: Iterable[monitor_pb2.ReleaseStats], order: Sequence[str]) -> list[Arm]:
    """The arms with a request, in `order`, and after them those that it lacks. Rows of one arm are added up."""
    grouped: dict[str, list[monitor_pb2.ReleaseStats]] = {}
    for row in rows:
        grouped.setdefault(row.arm, []).append(row)
    names = [name for name in order if name in grouped]
    return [_arm(name, grouped[name]) for name in (*names, *sorted(grouped.keys() - set(names)))]


def baseline(arms: Sequence[Arm]) -> Arm | None:
    """The arm that others are compared with: the stable one if it had requests, else the first."""
    return next((arm for arm in arms if arm.name == specs.STABLE), arms[0] if arms else None)


def of_shares(count: int, number: int, than_count: int, than_number: int) -> Difference:
    """Of count/number less than_count/than_number, from 1 each: Newcombe's method 10.

    R. G. Newcombe: Interval estimation for the difference between independent proportions. Statistics in Medicine 17
    (1998), 873-890. It also holds for few failures, where the usual interval is too narrow.
    """
    one, other = count / number, than_count / than_number
    low, high = _wilson(one, number)
    than_low, than_high = _wilson(other, than_number)
    return Difference(
        one - other,
        one - other - math.hypot(one - low, than_high - other),
        one - other + math.hypot(high - one, other - than_low),
    )


def of_means(one: Times, other: Times) -> Difference | None:
    """Of the means, in seconds; None for fewer than 30 times in one of them."""
    if min(one.number, other.number) < _LEAST_TIMED:
        return None
    error = math.hypot(*(each.deviation_seconds / math.sqrt(each.number) for each in (one, other)))
    estimate = one.mean_seconds - other.mean_seconds
    return Difference(estimate, estimate - _Z * error, estimate + _Z * error)


def _arm(name: str, rows: Sequence[monitor_pb2.ReleaseStats]) -> Arm:
    first, whole = Times(), Times()
    for row in rows:
        first = first.with_(Times(row.timed, row.first_token_mean_seconds, row.first_token_deviation_seconds))
        whole = whole.with_(Times(row.timed, row.duration_mean_seconds, row.duration_deviation_seconds))
    return Arm(
        name=name,
        requests=sum(row.requests for row in rows),
        failed=sum(row.failed for row in rows),
        blocked=sum(row.blocked for row in rows),
        refused=sum(row.refused for row in rows),
        first_token=first,
        duration=whole,
        rated_up=sum(row.rated_up for row in rows),
        rated_down=sum(row.rated_down for row in rows),
    )


def _wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's interval of a share of `number`."""
    middle = share + _Z**2 / (2 * number)
    width = _Z * math.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2))
    return (middle - width) / (1 + _Z**2 / number), (middle + width) / (1 + _Z**2 / number)
