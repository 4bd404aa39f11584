"""Prometheus metrics of the model server; every engine is measured by the same ones."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from genaifactory_common.telemetry import LATENCY_BUCKETS

ENGINE_READY = Gauge("genaifactory_modelserver_engine_ready", "1 while the engine can answer, else 0.", ["engine"])
RUNNING = Gauge("genaifactory_modelserver_requests_running", "Requests that an engine works on.", ["engine"])
QUEUED = Gauge("genaifactory_modelserver_requests_queued", "Requests that wait for an engine.", ["engine"])
REFUSED = Counter(
    "genaifactory_modelserver_requests_refused_total",
    "Requests refused because the queue was full, or the tenant had as many as it may.",
    ["engine", "cause"],
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
ADAPTERS_LOADED = Gauge("genaifactory_modelserver_adapters_loaded", "Adapters in the engine.", ["model"])
ADAPTER_LOADS = Counter(
    "genaifactory_modelserver_adapter_loads_total", "Adapters put into the engine, by outcome.", ["model", "outcome"]
)
ADAPTERS_EVICTED = Counter(
    "genaifactory_modelserver_adapters_evicted_total",
    "Adapters unloaded from the engine to make room for another.",
    ["model"],
)
ADAPTER_LOAD_SECONDS = Histogram(
    "genaifactory_modelserver_adapter_load_seconds",
    "Putting an adapter into the engine.",
    ["model"],
    buckets=LATENCY_BUCKETS,
)
SOURCE_BYTES = Gauge(
    "genaifactory_modelserver_source_bytes", "Of a model's weights, fetched so far and in all.", ["model", "part"]
)
