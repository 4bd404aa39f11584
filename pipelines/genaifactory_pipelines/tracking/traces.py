"""Answers of an evaluation as traces of MLflow, by ids that follow from what they are: one that is logged again is the
same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from genaifactory_pipelines.values import Values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Assessment, Span, TraceInfo
    from mlflow.tracing.client import TracingClient

_LONGEST_PREVIEW = 1000
_SOURCE = "genaifactory evaluate"
_NANOSECONDS = 1_000_000_000


class Trace(Values):
    """An answer to an item."""

    who: str
    """ "candidate" or "production"."""
    item: str
    """Its id."""
    started: int
    """Milliseconds since 1970."""
    seconds: float
    """Until the whole answer was there."""
    first_text_seconds: float
    """Until its first text was there; 0 without any."""
    request: str
    """What is shown of the question in a list."""
    response: str
    """What is shown of the answer in a list."""
    inputs: Any
    """JSON: the conversation."""
    outputs: Any
    """JSON: the answer."""
    passages: Any
    """JSON: what the search has found; None where nothing was."""
    error: str = ""
    """Reason code, where there is no answer."""
    expected: tuple[str, ...] = ()
    """Right answers."""
    scores: dict[str, float]
    """By the metric."""
    tags: dict[str, str]


def log(client: MlflowClient, experiment: str, run_id: str, key: str, traces: Sequence[Trace]) -> None:
    """Logs traces of a run. Blocks. Raises MlflowException, TimeoutError.

    key: the run's, which is the same for the same results: whoever records them logs the same traces.
    """
    from mlflow.tracing.client import TracingClient

    tracing = TracingClient(client.tracking_uri)
    spans: list[Span] = []
    for trace in traces:
        name = hashlib.sha256(json.dumps([experiment, key, trace.who, trace.item]).encode()).hexdigest()[:32]
        tracing.start_trace(_info(trace, name, experiment, run_id))
        spans += _spans(trace, name)
    _log_spans(tracing, experiment, spans)


def _log_spans(tracing: TracingClient, experiment: str, spans: list[Span]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    try:
        tracing.log_spans(experiment, spans)
    except NotImplementedError as error:
        # MLflow's client asks the server for its version, and keeps it for good that there was no answer in 3 seconds.
        store: Any = tracing.store
        if store._get_server_version(store.get_host_creds()) is not None:
            raise MlflowException(str(error), error_code=ENDPOINT_NOT_FOUND) from None
        store._get_server_version.cache_clear()
        raise TimeoutError from None


def _info(trace: Trace, name: str, experiment: str, run_id: str) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

    return TraceInfo(
        trace_id=f"tr-{name}",
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=trace.started,
        execution_duration=int(trace.seconds * 1000),
        state=TraceState.ERROR if trace.error else TraceState.OK,
        request_preview=trace.request[:_LONGEST_PREVIEW],
        response_preview=trace.response[:_LONGEST_PREVIEW],
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id},
        tags={TraceTagKey.TRACE_NAME: trace.who, **trace.tags},
        assessments=list(_assessments(trace, name)),
    )


def _assessments(trace: Trace, name: str) -> Iterator[Assessment]:
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    source = AssessmentSource("CODE", _SOURCE)
    found: list[Assessment] = [Feedback(metric, value, source=source) for metric, value in trace.scores.items()]
    if trace.expected:
        found.append(Expectation("expected_response", " | ".join(trace.expected), source=source))
    for each in found:
        each.trace_id = f"tr-{name}"
        each.assessment_id = f"a-{hashlib.sha256(f'{name} {each.name}'.encode()).hexdigest()[:32]}"
        each.create_time_ms = each.last_update_time_ms = trace.started
        yield each


def _spans(trace: Trace, name: str) -> Iterator[Span]:
    """The whole answer, and within it the search and the model. When the search ended was not measured."""
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    started = trace.started * 1_000_000
    of = [SpanContext(int(name, 16), number, is_remote=False, trace_flags=TraceFlags(1)) for number in (1, 2, 3)]
    status = Status(StatusCode.ERROR, trace.error) if trace.error else Status(StatusCode.OK)

    def span(number: int, title: str, kind: str, inputs: Any, outputs: Any, seconds: float, first: float = 0) -> Span:
        values = {
            SpanAttributeKey.REQUEST_ID: f"tr-{name}",
            SpanAttributeKey.SPAN_TYPE: kind,
            SpanAttributeKey.INPUTS: inputs,
            SpanAttributeKey.OUTPUTS: outputs,
        }
        return Span(
            ReadableSpan(
                title,
                of[number],
                parent=of[0] if number else None,
                resource=Resource({"service.name": "genaifactory"}),
                attributes={key: json.dumps(value, ensure_ascii=False) for key, value in values.items()},
                events=[Event("first text", {}, timestamp=started + int(first * _NANOSECONDS))] if first else (),
                status=status,
                start_time=started,
                end_time=started + int(seconds * _NANOSECONDS),
            )
        )

    yield span(0, "answer", SpanType.CHAIN, trace.inputs, trace.outputs, trace.seconds)
    if trace.passages is not None:
        yield span(1, "search", SpanType.RETRIEVER, trace.request, trace.passages, 0)
    if not trace.error:
        yield span(2, "model", SpanType.LLM, trace.inputs, trace.outputs, trace.seconds, trace.first_text_seconds)
