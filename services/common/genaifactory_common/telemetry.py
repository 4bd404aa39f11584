"""Traces, metrics and logs of every service.

Traces follow OpenTelemetry's RPC and GenAI semantic conventions; metrics are Prometheus's, each with a `service`
label since several services may share a process; logs are JSON lines that carry the trace id.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram

from genaifactory_common import settings as common_settings
from genaifactory_common import span_store
from genaifactory_common.errors import FactoryError

# Seconds; from a cache hit to a long answer.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

RPC_REQUESTS = Counter(
    "genaifactory_rpc_requests_total", "gRPC calls served, by final status.", ["service", "method", "code"]
)
RPC_DURATION = Histogram(
    "genaifactory_rpc_duration_seconds",
    "From the start of a served gRPC call to its end.",
    ["service", "method"],
    buckets=LATENCY_BUCKETS,
)
RPC_RUNNING = Gauge("genaifactory_rpc_running", "gRPC calls being served.", ["service"])

# How long finished spans wait for others: OpenTelemetry's default for a collector, less for a file that a person reads.
_EXPORT_MILLIS = 5000
_STORE_MILLIS = 500

_propagator = TraceContextTextMapPropagator()
_encode_line = json.JSONEncoder(ensure_ascii=False, default=str).encode


class _Identifying(trace.NoOpTracer):
    """Records no spans, but generates trace ids for logs, records and calls."""

    def __init__(self) -> None:
        self._ids = RandomIdGenerator()

    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> Span:
        """The parent itself, or without one a span with a new trace id, marked as not recorded."""
        parent = super().start_span(name, context)
        if parent.get_span_context().is_valid:
            return parent
        ids = self._ids
        return NonRecordingSpan(SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False))


class Telemetry:
    """One service's tracer. There are always trace ids; spans go to a collector, else to a file, else nowhere."""

    def __init__(
        self,
        service: str,
        settings: common_settings.Telemetry | None = None,
        *,
        exporter: SpanExporter | None = None,
    ) -> None:
        """exporter: where spans go instead of settings.otlp_endpoint (tests, and services that share a process)."""
        self.service = service
        settings = settings or common_settings.Telemetry()
        if exporter is None and settings.otlp_endpoint:
            # Imported here: a twentieth of all that `genaifactory run` would import.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(
                endpoint=settings.otlp_endpoint, insecure=settings.otlp_endpoint.startswith("http://"), timeout=5
            )
        sampler: Sampler = ParentBasedTraceIdRatio(settings.sample_ratio)
        delay_millis = _EXPORT_MILLIS
        self._begins_traces = False
        if exporter is None and settings.spans_file is not None:
            exporter = span_store.Exporter(settings.spans_file)
            # Tenants share the file: a caller that could choose the trace could add spans to another tenant's.
            self._begins_traces = service == "gateway"
            # Deliveries of records and reads of the command line would only displace answers from the file.
            sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio) if self._begins_traces else ALWAYS_OFF)
            delay_millis = _STORE_MILLIS
        self._provider: TracerProvider | None = None
        if exporter is None:
            self.tracer: trace.Tracer = _Identifying()
            return
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"genaifactory-{service}", "service.namespace": "genaifactory"}),
            sampler=sampler,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=4096, schedule_delay_millis=delay_millis)
        )
        self.tracer = self._provider.get_tracer("genaifactory")

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._provider is not None

    def caller(self, metadata: Iterable[tuple[str, Any]]) -> tuple[Context, Sequence[Link]]:
        """Parent and links of the server's span of a call with this metadata (pairs) or these headers.

        The caller's span is the parent, except where the gateway's spans go to a file that tenants share: the trace
        begins there, with a link to the caller's span.
        """
        context = extract(metadata)
        if not self._begins_traces:
            return context, ()
        theirs = trace.get_current_span(context).get_span_context()
        return Context(), (Link(theirs),) if theirs.is_valid else ()

    @contextmanager
    def span(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: dict[str, Any] | None = None
    ) -> Iterator[Span]:
        """A span around a block that does not yield to another task's context; an exception marks it as failed."""
        with self.tracer.start_as_current_span(
            name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                mark_failed(span, error)
                raise

    @contextmanager
    def joined(self, name: str, traceparents: Iterable[str]) -> Iterator[None]:
        """A span in each of several traces, around a block that works for all of them: a queue's batch."""
        if not self.enabled:
            yield
            return
        spans = [
            self.tracer.start_span(name, context=extract([("traceparent", traceparent)]), kind=SpanKind.CONSUMER)
            for traceparent in traceparents
            if traceparent
        ]
        try:
            yield
        except BaseException as error:
            for span in spans:
                mark_failed(span, error)
            raise
        finally:
            for span in spans:
                span.end()

    def close(self) -> None:
        """Sends the spans that are left; blocks for up to the exporter's timeout."""
        if self._provider is not None:
            self._provider.shutdown()


def describe(attributes: dict[str, Any]) -> None:
    """Adds attributes to the current span, if it is recorded. They must hold no text of questions and answers."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(attributes)


def mark_failed(span: Span, error: BaseException) -> None:
    """Marks a span as failed, with the error's reason or class, without its message, which may hold secrets."""
    kind = error.reason.value if isinstance(error, FactoryError) else type(error).__name__
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))


def inject() -> list[tuple[str, str]]:
    """Call metadata that propagates the current span; empty when there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return list(carrier.items())


def unrecorded() -> Context:
    """A context whose calls are in no trace: for regular looks at another service, which belong to no request."""
    ids = RandomIdGenerator()
    return trace.set_span_in_context(
        NonRecordingSpan(SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)), Context()
    )


def extract(metadata: Iterable[tuple[str, Any]]) -> Context:
    """The span context of incoming call metadata (pairs) or headers."""
    return _propagator.extract({key: value for key, value in metadata if key in ("traceparent", "tracestate")})


def current_trace_id() -> str:
    """32 hex digits; empty outside a request."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, trace_id, and `extra` fields named genai_*."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id := current_trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line.update({k.removeprefix("genai_"): v for k, v in record.__dict__.items() if k.startswith("genai_")})
        return _encode_line(line)


def configure_logging(settings: common_settings.Telemetry) -> None:
    """Sends the process's logs to stderr in the configured form."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
