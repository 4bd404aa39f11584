"""The comparison of arms: known values, and intervals that hold the true difference as often as they say."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_local import arms
from genaifactory_local.arms import Times


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_two_shares_is_newcombes(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = arms.of_shares(*counts)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)
    assert found.estimate == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])


def times(values: list[float]) -> Times:
    return Times(len(values), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def test_intervals_hold_the_true_difference_in_95_of_100_comparisons() -> None:
    chance = random.Random(13)
    shares = means = 0
    for _ in range(1000):
        failed = [sum(chance.random() < share for _ in range(200)) for share in (0.06, 0.03)]
        found = arms.of_shares(failed[0], 200, failed[1], 200)
        shares += found.low <= 0.03 <= found.high
        one, other = ([chance.lognormvariate(mu, 0.5) for _ in range(80)] for mu in (0.1, 0.0))
        true = (math.exp(0.1) - 1) * math.exp(0.5**2 / 2)
        difference = arms.of_means(times(one), times(other))
        assert difference is not None
        means += difference.low <= true <= difference.high
    assert shares == pytest.approx(950, abs=25)
    assert means == pytest.approx(950, abs=25)


def test_fewer_than_30_times_give_no_interval_of_their_means() -> None:
    few, enough = times([1.0, 2.0] * 14 + [1.0]), times([1.0, 2.0] * 15)
    assert arms.of_means(few, enough) is None
    assert arms.of_means(enough, few) is None
    assert arms.of_means(enough, enough) is not None


def test_samples_join_as_if_they_had_been_one() -> None:
    chance = random.Random(3)
    parts = [[chance.gauss(2, 1) for _ in range(count)] for count in (5, 1, 12)]
    joined = Times()
    for part in parts:
        joined = joined.with_(times(part))
    whole = times([value for part in parts for value in part])
    assert joined.number == whole.number
    assert joined.mean_seconds == pytest.approx(whole.mean_seconds)
    assert joined.deviation_seconds == pytest.approx(whole.deviation_seconds)
    assert whole.with_(Times()) == Times().with_(whole) == whole


def test_rows_of_an_arm_are_one_arm_in_the_order_of_the_split() -> None:
    found = arms.of_split(
        [
            monitor_pb2.ReleaseStats(arm="gone", requests=1),
            monitor_pb2.ReleaseStats(arm="eight", model="a", requests=3, failed=1, timed=2, first_token_mean_seconds=1),
            monitor_pb2.ReleaseStats(arm="eight", requests=2, blocked=2, rated_up=1, rated_down=2),
            monitor_pb2.ReleaseStats(arm="stable", model="a", requests=7, refused=1),
        ],
        ("stable", "eight", "unused"),
    )
    assert [(arm.name, arm.requests, arm.failed, arm.blocked, arm.refused) for arm in found] == [
        ("stable", 7, 0, 0, 1),
        ("eight", 5, 1, 2, 0),
        ("gone", 1, 0, 0, 0),
    ]
    assert found[1].first_token == Times(2, 1.0, 0.0)
    assert (found[1].rated_up, found[1].rated_down) == (1, 2)
    assert arms.baseline(found) is found[0]
    assert arms.baseline(found[1:]) is found[1]
    assert arms.baseline([]) is None
