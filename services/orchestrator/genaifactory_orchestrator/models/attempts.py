"""One attempt at one model, with its outcome for the circuit breaker, its span, metrics, usage and cost."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from genaifactory_common import specs
from genaifactory_common.errors import Reason
from genaifactory_common.telemetry import LATENCY_BUCKETS, Telemetry, mark_failed
from genaifactory_orchestrator.models import pricing
from genaifactory_orchestrator.models.backend import Failure, Usage
from genaifactory_orchestrator.models.pricing import Cost
from genaifactory_orchestrator.models.resilience import Permit

ATTEMPTS = Counter(
    "genaifactory_model_attempts_total",
    "Attempts at a model, by outcome: ok, circuit_open, or the reason of the failure.",
    ["model", "outcome"],
)
FIRST_TOKEN = Histogram(
    "genaifactory_model_first_token_seconds",
    "From the start of an attempt to its first token.",
    ["model"],
    buckets=LATENCY_BUCKETS,
)


@dataclass(frozen=True)
class Attempt:
    """One finished attempt at one model."""

    model: str
    error_reason: str
    """Reason of its failure; empty for a success."""
    duration_seconds: float
    first_token_seconds: float | None = None
    """From the start of this attempt; None without a token."""
    usage: Usage = field(default_factory=Usage)
    cost: Cost = field(default_factory=Cost)


class Try:
    """An attempt in progress; a context manager that records its end in any case."""

    def __init__(
        self,
        spec: specs.Model,
        operation: str,
        permit: Permit,
        attempts: list[Attempt],
        telemetry: Telemetry,
        *,
        first: bool,
    ) -> None:
        """operation: gen_ai.operation.name. first: whether it is the request's first attempt at this model.

        The finished attempt is appended to `attempts`.
        """
        self._spec = spec
        self._permit = permit
        self._attempts = attempts
        self._first = first
        self._started = time.perf_counter()
        self._first_token_seconds: float | None = None
        self.usage = Usage()
        """Its usage; to be set before it ends."""
        self.finish_reasons: tuple[str, ...] = ()
        """For the span."""
        self.span = telemetry.tracer.start_span(
            f"{operation} {spec.backend.model}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "genaifactory" if spec.backend.type == "modelserver" else "openai",
                "gen_ai.request.model": spec.backend.model,
                "genaifactory.model": spec.name,
                "genaifactory.attempt": len(attempts) + 1,
            },
        )

    def first_token(self) -> None:
        """Notes the time of the first token."""
        self._first_token_seconds = time.perf_counter() - self._started
        FIRST_TOKEN.labels(self._spec.name).observe(self._first_token_seconds)

    def as_current(self) -> AbstractContextManager[object]:
        """Makes its span the current one, so that a call that begins inside propagates it."""
        if not self.span.is_recording():
            return nullcontext()
        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        reason = ""
        if error is None:
            self._permit.succeeded()
        elif isinstance(error, Failure):
            reason = error.reason.value
            # Any request may meet a replica that stops; only a second such failure in a row counts for the circuit.
            if error.unhealthy and not (error.elsewhere and self._first):
                self._permit.failed()
            else:
                self._permit.abandoned()
        else:  # the request was cancelled
            reason = Reason.CANCELLED.value
            self._permit.abandoned()
        self._record(reason, error)

    def _record(self, reason: str, error: BaseException | None) -> None:
        ATTEMPTS.labels(self._spec.name, reason.lower() or "ok").inc()
        self._attempts.append(
            Attempt(
                self._spec.name,
                reason,
                time.perf_counter() - self._started,
                self._first_token_seconds,
                self.usage,
                pricing.cost(self._spec.price, self.usage),
            )
        )
        if self.span.is_recording():
            self._describe(error)
        self.span.end()

    def _describe(self, error: BaseException | None) -> None:
        self.span.set_attribute("gen_ai.usage.input_tokens", self.usage.prompt_tokens)
        self.span.set_attribute("gen_ai.usage.output_tokens", self.usage.completion_tokens)
        if self._first_token_seconds is not None:
            self.span.set_attribute("gen_ai.response.time_to_first_chunk", self._first_token_seconds)
        if self.finish_reasons:
            self.span.set_attribute("gen_ai.response.finish_reasons", self.finish_reasons)
        if error is not None:
            mark_failed(self.span, error.error if isinstance(error, Failure) else error)
            if isinstance(error, Failure):
                self.span.set_attribute("error.type", error.reason.value)


def record_skipped(spec: specs.Model, attempts: list[Attempt]) -> None:
    """Records that a model was not called because its circuit is open."""
    ATTEMPTS.labels(spec.name, "circuit_open").inc()
    attempts.append(Attempt(spec.name, Reason.UNAVAILABLE.value, 0.0))
