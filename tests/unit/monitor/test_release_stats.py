"""GetReleaseStats: what each release of a route did, in whole hours."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, testing
from genaifactory_common.errors import InvalidArgument, PermissionDenied, TooLarge
from genaifactory_monitor import release_stats
from tests.unit.monitor.conftest import Monitor, make_interaction, moment

HOUR = 3600
PERIOD: dict[str, Any] = {"start_time": moment(60), "end_time": moment(HOUR + 60)}


async def stats(monitor: Monitor, **request: Any) -> monitor_pb2.GetReleaseStatsResponse:
    wanted = monitor_pb2.GetReleaseStatsRequest(**{"route": "docs", **PERIOD, **request})
    return await channels.unary(monitor.stub.GetReleaseStats, wanted, timeout_seconds=20)


async def test_arms_are_compared_by_their_sums_times_and_ratings(monitor: Monitor) -> None:
    testing.act_as()
    firsts = {"a": 0.25, "b": 0.5, "c": 1.25}
    arm: dict[str, Any] = {"split": "trial", "arm": "eight", "prompt_version": "rag@2"}
    masked = [types_pb2.Verdict(action=types_pb2.ACTION_MASK)]
    await monitor.record(
        *(
            make_interaction(
                name, at=HOUR * n / 2, time_to_first_token_us=round(seconds * 1e6), duration_us=3_000_000, **arm
            )
            for n, (name, seconds) in enumerate(firsts.items())
        ),
        make_interaction("cached", cached=True, verdicts=masked, **arm),
        make_interaction("failed", outcome=monitor_pb2.OUTCOME_FAILED, **arm),
        make_interaction("blocked", outcome=monitor_pb2.OUTCOME_BLOCKED, **arm),
        make_interaction("cancelled", outcome=monitor_pb2.OUTCOME_CANCELLED, **arm),
        make_interaction("refused", refused=True, time_to_first_token_us=0, **arm),
        make_interaction("chosen", arm_chosen=True, **arm),
        make_interaction("evaluated", adapter="leave-7", evaluation="e"),
        make_interaction("stable", split="trial", arm="stable", prompt_version="rag@1"),
        make_interaction("none", adapter="leave-7"),
        make_interaction("before", at=-1, **arm),
        make_interaction("after", at=2 * HOUR, **arm),
        make_interaction("elsewhere", route="talk"),
        make_interaction("rivals", tenant="rival", **arm),
    )
    for number, (request_id, rating) in enumerate(
        [("a", 1), ("b", 1), ("b", 2), ("stable", 2), ("before", 1), ("after", 1), ("chosen", 1), ("evaluated", 1)]
    ):
        await monitor.feedback(feedback_id=f"f{number}", request_id=request_id, rating=rating)
    await monitor.feedback(feedback_id="remark", request_id="a", comment="without a rating")

    found = await stats(monitor)
    assert (found.start_time, found.end_time) == (moment(0), moment(2 * HOUR))
    none, eight, stable = found.rows
    assert (none.split, none.arm, none.adapter, none.requests) == ("", "", "leave-7", 1)
    assert (none.rated_up, none.rated_down) == (0, 0)
    assert (stable.arm, stable.prompt_version, stable.requests) == ("stable", "rag@1", 1)
    assert (stable.rated_up, stable.rated_down) == (0, 1)
    assert (eight.split, eight.arm, eight.model, eight.prompt_version) == ("trial", "eight", "extractive", "rag@2")
    counts = (eight.requests, eight.failed, eight.blocked, eight.cancelled, eight.masked, eight.cached, eight.refused)
    assert counts == (8, 1, 1, 1, 1, 1, 1)
    assert (eight.cost_micros, eight.currency) == (200, "USD")
    assert (eight.usage.prompt_tokens, eight.usage.completion_tokens) == (800, 80)
    assert eight.timed == 3
    assert eight.first_token_mean_seconds == pytest.approx(statistics.mean(firsts.values()))
    assert eight.first_token_deviation_seconds == pytest.approx(statistics.stdev(firsts.values()))
    assert eight.duration_mean_seconds == 3.0
    assert eight.duration_deviation_seconds == pytest.approx(0, abs=1e-6)
    assert (eight.rated_up, eight.rated_down) == (2, 1)
    of_split = await stats(monitor, split="trial")
    assert list(of_split.rows) == [eight, stable]


async def test_a_deviation_of_equal_times_is_no_error_of_rounding(sqlite_monitor: Monitor) -> None:
    testing.act_as()
    same = [make_interaction(f"r{n}", time_to_first_token_us=333_333, duration_us=777_777) for n in range(30)]
    await sqlite_monitor.record(*same)
    (row,) = (await stats(sqlite_monitor)).rows
    assert math.isclose(row.first_token_deviation_seconds, 0, abs_tol=1e-6)
    assert row.first_token_mean_seconds == pytest.approx(0.333333)


async def test_another_tenants_releases_are_for_operators_alone(monitor: Monitor) -> None:
    await monitor.record(make_interaction("a"), make_interaction("b", tenant="rival", model="secret"))
    reader = replace(testing.CALLER, permissions=("evaluate",))
    testing.act_as(reader)
    assert [row.model for row in (await stats(monitor)).rows] == ["extractive"]
    for tenant in ("*", "rival"):
        with pytest.raises(PermissionDenied, match="'operate'"):
            await stats(monitor, tenant=tenant)
    testing.act_as(replace(reader, permissions=("usage", "operate")))
    assert [row.model for row in (await stats(monitor, tenant="rival")).rows] == ["secret"]
    assert [row.requests for row in (await stats(monitor, tenant="*")).rows] == [1, 1]
    testing.act_as(replace(reader, permissions=("chat", "operate")))
    with pytest.raises(PermissionDenied, match="'evaluate' or 'usage'"):
        await stats(monitor)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"route": ""}, "route"),
        ({"route": "x" * 200}, "route"),
        ({"split": "x" * 300}, "split"),
        ({"start_time": moment(0), "end_time": moment(0)}, "end_time"),
    ],
)
async def test_a_wrong_request_is_refused(sqlite_monitor: Monitor, request_: dict[str, Any], field: str) -> None:
    testing.act_as()
    with pytest.raises((InvalidArgument, TooLarge)) as refused:
        await stats(sqlite_monitor, **request_)
    assert refused.value.field == field


async def test_more_releases_than_a_response_holds_are_refused(
    sqlite_monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing.act_as()
    await sqlite_monitor.record(*(make_interaction(f"r{n}", model=f"m{n}") for n in range(3)))
    monkeypatch.setattr(release_stats, "MAX_ROWS", 2)
    with pytest.raises(TooLarge, match="more than 2 releases") as refused:
        await stats(sqlite_monitor)
    assert refused.value.field == "start_time"
