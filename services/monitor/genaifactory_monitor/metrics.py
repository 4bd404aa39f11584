"""Metrics of the stored interactions: requests by outcome, tokens, cost, latency; and of the records themselves.

Requests of evaluations, and of testers who chose an arm, count in tokens and cost, which they use as others do, and in
nothing that shows how users are served: a candidate that is slow or fails is no incident.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory_common.telemetry import LATENCY_BUCKETS
from genaifactory_monitor import indexed
from genaifactory_monitor.message_dicts import enum_name

INTERACTIONS = Counter(
    "genaifactory_interactions_total",
    "Interactions stored, without those of evaluations and of testers who chose an arm.",
    ["tenant", "model", "task", "outcome"],
)
KNOWN = Counter("genaifactory_interactions_known_total", "Interactions that arrived again and were ignored.")
FEEDBACK = Counter("genaifactory_feedback_total", "Feedback stored.", ["rating", "interaction"])
TOKENS = Counter("genaifactory_tokens_total", "Tokens of stored interactions.", ["tenant", "model", "kind"])
COST = Counter(
    "genaifactory_cost_micros_total", "Price of stored interactions, in millionths.", ["tenant", "model", "currency"]
)
TIME_TO_FIRST_TOKEN = Histogram(
    "genaifactory_time_to_first_token_seconds",
    "From a request's start to the first text of its answer.",
    ["model"],
    buckets=LATENCY_BUCKETS,
)
TIME_PER_TOKEN = Histogram(
    "genaifactory_time_per_output_token_seconds",
    "Between two tokens of an answer, on average over it.",
    ["model"],
    buckets=LATENCY_BUCKETS,
)
DURATION = Histogram(
    "genaifactory_request_duration_seconds", "From a request's start to its end.", ["model"], buckets=LATENCY_BUCKETS
)
DRIFT = Gauge(
    "genaifactory_drift_verdict",
    "The verdict on the latest window of a route, empty for all routes: 0 none, 1 warning, 2 alarm.",
    ["tenant", "route"],
)
SWEPT = Counter("genaifactory_interactions_swept_total", "Interactions deleted after the retention.")
BATCH_LINES = Counter("genaifactory_batch_lines_total", "Lines of batches that got a result, by outcome.", ["outcome"])
OPEN_BATCHES = Gauge("genaifactory_batches_open", "Batches that have not ended.")
OLDEST_BATCH = Gauge("genaifactory_batches_oldest_seconds", "Age of the oldest of them; 0 without any.")

_OTHER = "other"
_OUTCOMES = monitor_pb2.Outcome.DESCRIPTOR


class Recorder:
    """Counts interactions in a bounded number of series: tenants and models beyond the bound share 'other'."""

    def __init__(self, max_series: int) -> None:
        """max_series: pairs of tenant and model with series of their own."""
        self._max_series = max_series
        self._seen: set[tuple[str, str]] = set()

    def count(self, item: monitor_pb2.Interaction) -> None:
        """Counts one new interaction."""
        tenant, model = self._labels(item.tenant, item.model)
        for kind, tokens in (
            ("prompt", item.usage.prompt_tokens),
            ("completion", item.usage.completion_tokens),
            ("cached_prompt", item.usage.cached_prompt_tokens),
        ):
            if tokens:
                TOKENS.labels(tenant, model, kind).inc(tokens)
        if item.cost_micros:
            COST.labels(tenant, model, item.currency).inc(item.cost_micros)
        if not indexed.is_use(item):
            return
        INTERACTIONS.labels(tenant, model, item.task, enum_name(_OUTCOMES, item.outcome)).inc()
        if not indexed.shows_speed(item):
            return
        DURATION.labels(model).observe(item.duration_us / 1e6)
        if item.time_to_first_token_us:
            TIME_TO_FIRST_TOKEN.labels(model).observe(item.time_to_first_token_us / 1e6)
            if item.usage.completion_tokens > 1:
                generating_us = max(item.duration_us - item.time_to_first_token_us, 0)
                TIME_PER_TOKEN.labels(model).observe(generating_us / (item.usage.completion_tokens - 1) / 1e6)

    def _labels(self, tenant: str, model: str) -> tuple[str, str]:
        pair = (tenant, model)
        if pair not in self._seen:
            if len(self._seen) >= self._max_series:
                return _OTHER, _OTHER
            self._seen.add(pair)
        return pair
