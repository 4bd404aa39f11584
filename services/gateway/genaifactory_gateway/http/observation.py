"""Observation of each HTTP request: metrics, a root span, and one line in the log without any content."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Gauge, Histogram

from genaifactory_common import telemetry
from genaifactory_common.telemetry import LATENCY_BUCKETS, Telemetry
from genaifactory_gateway.http.exchange import Exchange

access = logging.getLogger("genaifactory.gateway.access")

HTTP_REQUESTS = Counter(
    "genaifactory_http_requests_total", "HTTP requests answered, by final status.", ["route", "method", "status"]
)
HTTP_ERRORS = Counter(
    "genaifactory_http_errors_total",
    "HTTP requests that failed, by reason; also those whose status had been sent before.",
    ["route", "reason"],
)
HTTP_DURATION = Histogram(
    "genaifactory_http_duration_seconds",
    "From the headers of an HTTP request to the end of its answer.",
    ["route"],
    buckets=LATENCY_BUCKETS,
)
HTTP_RUNNING = Gauge("genaifactory_http_running", "HTTP requests being answered.")
HTTP_HANGUPS = Counter("genaifactory_http_hangups_total", "HTTP clients that left before the end.", ["route"])

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# Paths without log lines and spans.
_QUIET = frozenset(("/healthz", "/readyz", "/metrics"))


@contextmanager
def observed(exchange: Exchange, route: str, service_telemetry: Telemetry) -> Iterator[None]:
    """Observes the request that is answered inside the block. route: the path's template, or "unmatched"."""
    started = time.perf_counter()
    method = exchange.method if exchange.method in _METHODS else "OTHER"
    HTTP_RUNNING.inc()
    try:
        if route in _QUIET:
            yield
        else:
            with _root_span(exchange, f"{method} {route}", route, service_telemetry):
                yield
    finally:
        seconds = time.perf_counter() - started
        status = 499 if exchange.hung_up else exchange.status
        HTTP_RUNNING.dec()
        HTTP_REQUESTS.labels(route, method, str(status)).inc()
        HTTP_DURATION.labels(route).observe(seconds)
        if exchange.error is not None:
            HTTP_ERRORS.labels(route, exchange.error.reason.value).inc()
        if exchange.hung_up:
            HTTP_HANGUPS.labels(route).inc()
        if route not in _QUIET:
            _log(exchange, method, route, status, seconds)


@contextmanager
def _root_span(exchange: Exchange, name: str, route: str, service_telemetry: Telemetry) -> Iterator[None]:
    pairs = [
        (key.decode(), exchange.headers[key].decode("latin-1"))
        for key in (b"traceparent", b"tracestate")
        if key in exchange.headers
    ]
    attributes = {
        "http.request.method": exchange.method,
        "http.route": route,
        "url.path": exchange.path,
        "url.scheme": "http",
        "genaifactory.request_id": exchange.request_id,
    }
    parent, links = service_telemetry.caller(pairs)
    with service_telemetry.tracer.start_as_current_span(
        name,
        context=parent,
        links=links,
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        finally:
            span.set_attribute("http.response.status_code", exchange.status)
            if exchange.tenant:
                span.set_attribute("genaifactory.tenant", exchange.tenant)
            # A client's error is no failure of the server's span.
            if exchange.error is not None and (exchange.status >= 500 or exchange.status == 200):
                telemetry.mark_failed(span, exchange.error)


def _log(exchange: Exchange, method: str, route: str, status: int, seconds: float) -> None:
    if not access.isEnabledFor(logging.INFO):
        return
    extra: dict[str, object] = {
        "genai_request_id": exchange.request_id,
        "genai_tenant": exchange.tenant,
        "genai_key_id": exchange.key_id,
        "genai_route": route,
        "genai_status": status,
        "genai_duration_ms": round(seconds * 1000, 1),
    }
    if exchange.client_id:
        extra["genai_client_request_id"] = exchange.client_id
    if exchange.error is not None:
        extra["genai_error"] = exchange.error.reason.value
    access.info("%s %s %d", method, route, status, extra=extra)
