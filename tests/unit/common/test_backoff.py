"""Waits before retries: bounded, doubling, and spread over the whole interval."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaifactory_common.backoff import Backoff


@given(failures=st.integers(1, 10_000), seed=st.integers())
def test_a_wait_is_at_most_the_doubled_interval_and_the_longest(failures: int, seed: int) -> None:
    wait = Backoff(first_seconds=0.2, longest_seconds=5.0).seconds(failures, random.Random(seed).uniform)
    assert 0.0 <= wait <= min(5.0, 0.2 * 2 ** min(failures - 1, 40))


@pytest.mark.parametrize(("failures", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (1000, 5.0)])
def test_waits_are_spread_over_the_whole_interval(failures: int, longest: float) -> None:
    backoff, rng = Backoff(first_seconds=1.0, longest_seconds=5.0), random.Random(1)
    waits = [backoff.seconds(failures, rng.uniform) for _ in range(2000)]
    assert min(waits) < 0.025 * longest
    assert max(waits) > 0.975 * longest
    assert sum(waits) / len(waits) == pytest.approx(longest / 2, rel=0.05)


def test_waits_are_random_without_a_given_source_of_randomness() -> None:
    assert len({Backoff(1.0, 1.0).seconds(1) for _ in range(10)}) > 1
