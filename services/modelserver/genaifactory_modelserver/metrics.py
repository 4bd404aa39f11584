"""Prometheus metrics of the model server; every engine is measured by the same ones."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from genaifactory_common.telemetry import LATENCY_BUCKETS

RUNNING = Gauge("genaifactory_modelserver_requests_running", "Requests that an engine works on.", ["engine"])
QUEUED = Gauge("genaifactory_modelserver_requests_queued", "Requests that wait for an engine.", ["engine"])
REFUSED = Counter(
    "genaifactory_modelserver_requests_refused_total", "Requests refused because the queue was full.", ["engine"]
)
CANCELLED = Counter(
    "genaifactory_modelserver_requests_cancelled_total",
    "Requests stopped before their end, because the client went away or the deadline passed.",
    ["model", "cause"],
)
FINISHED = Counter(
    "genaifactory_modelserver_requests_finished_total",
    "Generations that came to their end, by finish reason of the first choice.",
    ["model", "finish_reason"],
)
PROMPT_TOKENS = Counter("genaifactory_modelserver_prompt_tokens_total", "Tokens read.", ["model"])
COMPLETION_TOKENS = Counter("genaifactory_modelserver_completion_tokens_total", "Tokens generated.", ["model"])
QUEUE_SECONDS = Histogram(
    "genaifactory_modelserver_queue_seconds", "Waiting for the engine.", ["engine"], buckets=LATENCY_BUCKETS
)
TIME_TO_FIRST_TOKEN = Histogram(
    "genaifactory_modelserver_time_to_first_token_seconds",
    "From the request's arrival, queueing included, to its first output.",
    ["model"],
    buckets=LATENCY_BUCKETS,
)
