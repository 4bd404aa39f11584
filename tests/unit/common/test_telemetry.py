"""Logs carry their trace, spans carry no content, and both work without a collector."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genaifactory_common import settings, telemetry
from genaifactory_common.errors import ContentBlocked
from genaifactory_common.telemetry import JsonFormatter, Telemetry


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger in the services' format, and its output."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("tests.telemetry")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logger, written
    logger.removeHandler(handler)


def test_a_log_line_is_one_json_object(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.info("câu hỏi %d\nsecond line", 7, extra={"genai_tenant": "acme", "other": "kept out"})
    (line,) = written.getvalue().splitlines()
    values = json.loads(line)
    assert values.pop("time").endswith("+00:00")
    assert values == {
        "level": "INFO",
        "logger": "tests.telemetry",
        "message": "câu hỏi 7\nsecond line",
        "tenant": "acme",
    }
    assert "câu hỏi" in line


def test_a_log_line_carries_the_trace_of_its_request(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    traced = Telemetry("t", exporter=InMemorySpanExporter())
    with traced.span("work"):
        expected = telemetry.current_trace_id()
        logger.info("inside")
    logger.info("outside")
    traced.close()
    inside, outside = map(json.loads, written.getvalue().splitlines())
    assert len(expected) == 32
    assert inside["trace_id"] == expected
    assert "trace_id" not in outside


def test_a_logged_exception_stays_within_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("failed")
    (line,) = written.getvalue().splitlines()
    assert "KeyError" in json.loads(line)["exception"]


def test_a_failed_span_has_the_kind_of_the_error_and_not_its_text() -> None:
    spans = InMemorySpanExporter()
    traced = Telemetry("t", exporter=spans)
    for error in (ContentBlocked("the text was bad"), ValueError("the text was bad")):
        with pytest.raises(type(error)), traced.span("work"):
            raise error
    traced.close()
    first, second = spans.get_finished_spans()
    assert first.attributes is not None
    assert first.attributes["error.type"] == "CONTENT_BLOCKED"
    assert second.attributes is not None
    assert second.attributes["error.type"] == "ValueError"
    assert "the text was bad" not in first.to_json() + second.to_json()


def test_the_trace_context_is_propagated_in_call_metadata() -> None:
    traced = Telemetry("t", exporter=InMemorySpanExporter())
    with traced.span("caller"):
        trace_id = telemetry.current_trace_id()
        metadata = telemetry.inject()
    assert telemetry.current_trace_id() == ""
    context = telemetry.extract([*metadata, ("other-bin", b"\xff")])
    with traced.tracer.start_as_current_span("called", context=context):
        assert telemetry.current_trace_id() == trace_id
    traced.close()


@pytest.mark.parametrize("garbage", ["", "00-xyz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000])
def test_a_malformed_trace_context_begins_a_new_trace(garbage: str) -> None:
    traced = Telemetry("t", exporter=InMemorySpanExporter())
    with traced.tracer.start_as_current_span("called", context=telemetry.extract([("traceparent", garbage)])):
        assert len(telemetry.current_trace_id()) == 32
    traced.close()


def test_without_an_exporter_there_are_ids_but_no_spans() -> None:
    silent, next_service = Telemetry("t"), Telemetry("u")
    with silent.span("work") as span:
        trace_id = telemetry.current_trace_id()
        assert not span.is_recording()
        carried = telemetry.inject()
        with silent.span("a part of it"):
            assert telemetry.current_trace_id() == trace_id
    assert len(trace_id) == 32
    assert dict(carried)["traceparent"].endswith("-00")  # not sampled
    with next_service.tracer.start_as_current_span("called", telemetry.extract(carried)):
        assert telemetry.current_trace_id() == trace_id
    with silent.span("other work"):
        assert telemetry.current_trace_id() not in ("", trace_id)
    assert telemetry.current_trace_id() == ""
    assert not silent.enabled
    silent.close()


def test_a_batch_of_several_requests_has_a_span_in_each_of_their_traces() -> None:
    spans = InMemorySpanExporter()
    traced = Telemetry("t", exporter=spans)
    parents = [f"00-{trace * 32}-{'1' * 16}-01" for trace in "abc"]
    with pytest.raises(ValueError, match="lost"), traced.joined("store", [*parents, "", "garbage"]):
        raise ValueError("lost")
    traced.close()
    found = spans.get_finished_spans()
    traces = {f"{span.context.trace_id:032x}" for span in found if span.context}
    assert {trace * 32 for trace in "abc"} <= traces
    assert all(span.attributes and span.attributes["error.type"] == "ValueError" for span in found)


def test_logs_go_to_stderr_in_the_configured_form() -> None:
    script = (
        "import logging, sys; from genaifactory_common import settings, telemetry;"
        "telemetry.configure_logging(settings.Telemetry(log_format=sys.argv[1], log_level='WARNING'));"
        "logging.getLogger('x').warning('chào'); logging.getLogger('x').info('unheard')"
    )

    def run(form: str) -> str:
        done = subprocess.run([sys.executable, "-c", script, form], capture_output=True, text=True, check=True)
        assert done.stdout == ""
        return done.stderr

    assert json.loads(run("json"))["message"] == "chào"
    assert run("text").endswith("WARNING x: chào\n")


def test_an_unreachable_collector_does_not_block() -> None:
    traced = Telemetry("t", settings.Telemetry(otlp_endpoint="http://127.0.0.1:1"))
    with traced.span("work"):
        assert telemetry.current_trace_id()
    assert traced.enabled
