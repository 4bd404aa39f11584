"""Metrics: each interaction is counted once, in a bounded number of series."""

from __future__ import annotations

import asyncio

import prometheus_client

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import testing
from genaifactory_monitor import converters, metrics
from tests.unit.monitor.conftest import NOON, Monitor, make_interaction


async def value(name: str, **labels: str) -> float:
    # A registry also reads files of the process.
    return await asyncio.to_thread(prometheus_client.REGISTRY.get_sample_value, name, labels) or 0.0


async def test_an_interaction_is_counted_once_however_often_it_arrives(sqlite_monitor: Monitor) -> None:
    usage = types_pb2.TokenUsage(prompt_tokens=40, completion_tokens=11, cached_prompt_tokens=3)
    message = make_interaction("a", model="metered", usage=usage, time_to_first_token_us=500_000, duration_us=1_500_000)
    known = await value("genaifactory_interactions_known_total")

    for _ in range(3):
        await sqlite_monitor.record(message)

    names = {"tenant": "acme", "model": "metered"}
    assert await value("genaifactory_interactions_total", **names, task="rag", outcome="answered") == 1
    assert await value("genaifactory_interactions_known_total") - known == 2
    assert await value("genaifactory_tokens_total", **names, kind="prompt") == 40
    assert await value("genaifactory_tokens_total", **names, kind="completion") == 11
    assert await value("genaifactory_tokens_total", **names, kind="cached_prompt") == 3
    assert await value("genaifactory_cost_micros_total", **names, currency="USD") == 25
    assert await value("genaifactory_time_to_first_token_seconds_sum", model="metered") == 0.5
    assert await value("genaifactory_request_duration_seconds_sum", model="metered") == 1.5
    assert await value("genaifactory_time_per_output_token_seconds_sum", model="metered") == 0.1


async def test_latency_is_measured_only_on_answers_of_the_model(sqlite_monitor: Monitor) -> None:
    await sqlite_monitor.record(
        make_interaction("a", model="broken", outcome=monitor_pb2.OUTCOME_FAILED),
        make_interaction("b", model="broken", cached=True),
    )
    names = {"tenant": "acme", "model": "broken", "task": "rag"}
    assert await value("genaifactory_interactions_total", **names, outcome="failed") == 1
    assert await value("genaifactory_request_duration_seconds_count", model="broken") == 0


async def test_an_evaluation_counts_in_tokens_and_cost_alone(sqlite_monitor: Monitor) -> None:
    await sqlite_monitor.record(
        make_interaction("a", model="candidate", evaluation="e-1"),
        make_interaction("b", model="candidate", evaluation="e-1", outcome=monitor_pb2.OUTCOME_FAILED),
    )
    names = {"tenant": "acme", "model": "candidate"}
    for outcome in ("answered", "failed"):
        assert await value("genaifactory_interactions_total", **names, task="rag", outcome=outcome) == 0
    assert await value("genaifactory_request_duration_seconds_count", model="candidate") == 0
    assert await value("genaifactory_time_to_first_token_seconds_count", model="candidate") == 0
    assert await value("genaifactory_tokens_total", **names, kind="prompt") == 200
    assert await value("genaifactory_cost_micros_total", **names, currency="USD") == 50


async def test_feedback_is_counted_once_by_rating(sqlite_monitor: Monitor) -> None:
    testing.act_as()
    before = await value("genaifactory_feedback_total", rating="down", interaction="unknown")
    for _ in range(2):
        await sqlite_monitor.feedback(feedback_id="f", request_id="a", rating=monitor_pb2.RATING_DOWN)
    assert await value("genaifactory_feedback_total", rating="down", interaction="unknown") - before == 1


async def test_tenants_beyond_the_bound_share_one_series() -> None:
    recorder = metrics.Recorder(max_series=2)
    for tenant in ("bound1", "bound2", "bound3", "bound4", "bound1"):
        message = make_interaction("a", tenant=tenant, model="bounded")
        recorder.count(converters.interaction(message, "i", now_us=NOON * 10**6, max_bytes=10**6))
    labels = {"task": "rag", "outcome": "answered"}
    assert await value("genaifactory_interactions_total", tenant="bound1", model="bounded", **labels) == 2
    assert await value("genaifactory_interactions_total", tenant="bound3", model="bounded", **labels) == 0
    assert await value("genaifactory_interactions_total", tenant="other", model="other", **labels) == 2
