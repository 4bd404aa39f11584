"""Spans in a file: found by request, bounded for each tenant, private, and without effect on requests."""

from __future__ import annotations

import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, set_span_in_context

from genaifactory_common import settings, span_store, telemetry
from genaifactory_common.span_store import Bounds, Exporter, Span
from genaifactory_common.telemetry import Telemetry


class Service:
    """A service that writes its spans to the file as each ends."""

    def __init__(self, file: Path, name: str = "gateway", bounds: Bounds = span_store.DEFAULT_BOUNDS) -> None:
        self.exporter = Exporter(file, bounds)
        self._provider = TracerProvider(resource=Resource.create({"service.name": f"genaifactory-{name}"}))
        self._provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer: Tracer = self._provider.get_tracer("t")

    def request(self, request_id: str, tenant: str = "acme", *, children: int = 0, trace_id: int | None = None) -> None:
        """One request with so many steps; trace_id: of the client's own trace."""
        own = SpanContext(trace_id or 0, 1, is_remote=True, trace_flags=TraceFlags(1))
        attributes = {"genaifactory.request_id": request_id, "genaifactory.tenant": tenant}
        root = self.tracer.start_span("POST", set_span_in_context(NonRecordingSpan(own)), attributes=attributes)
        for number in range(children):
            self.tracer.start_span(f"step {number}", set_span_in_context(root)).end()
        root.end()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "traces" / "spans.sqlite"


def found(file: Path, request_id: str) -> list[Span]:
    with span_store.reading(file) as reader:
        assert reader is not None
        return reader.of_request(request_id)


def test_the_spans_of_a_request_are_found_without_others_of_the_same_trace(file: Path) -> None:
    service = Service(file)
    service.request("req-1", children=2, trace_id=7)
    service.request("req-2", children=1, trace_id=7)
    assert [span.name for span in found(file, "req-1")] == ["POST", "step 0", "step 1"]
    assert [span.name for span in found(file, "req-2")] == ["POST", "step 0"]
    assert found(file, "req-3") == []
    assert found(file, "") == []


def test_spans_of_several_services_are_one_trace(file: Path) -> None:
    gateway, orchestrator = Service(file), Service(file, "orchestrator")
    root = gateway.tracer.start_span("Chat")
    parent = set_span_in_context(root)
    orchestrator.tracer.start_span("Answer", parent, attributes={"genaifactory.request_id": "req-1"}).end()
    root.end()
    assert [(span.service, span.name) for span in found(file, "req-1")] == [
        ("gateway", "Chat"),
        ("orchestrator", "Answer"),
    ]
    with span_store.reading(file) as reader:
        assert reader is not None
        assert reader.last_request() == "req-1"


def test_the_last_request_is_one_for_an_answer_or_vectors_and_not_a_count_of_the_command_line(file: Path) -> None:
    orchestrator = Service(file, "orchestrator")
    for method, request_id in (("Answer", "req-1"), ("Embed", "req-2"), ("CountConversations", "req-3")):
        name = f"genaifactory.orchestrator.v1.OrchestratorService/{method}"
        orchestrator.tracer.start_span(name, attributes={"genaifactory.request_id": request_id}).end()
    with span_store.reading(file) as reader:
        assert reader is not None
        assert reader.last_request() == "req-2"


def test_stored_spans_are_found_after_a_restart(file: Path) -> None:
    service = Service(file)
    service.request("req-1")
    service.exporter.shutdown()
    Service(file).request("req-2")
    assert len(found(file, "req-1")) == 1


def test_a_tenants_spans_displace_only_its_own(file: Path) -> None:
    service = Service(file, bounds=Bounds(traces_per_tenant=10))
    service.request("req-quiet", "quiet")
    for number in range(1200):
        service.request(f"req-{number}", "loud")
    assert found(file, "req-quiet")
    assert found(file, "req-1199")
    assert not found(file, "req-0")


def test_spans_of_the_tenant_with_most_bytes_are_deleted(file: Path) -> None:
    service = Service(file, bounds=Bounds(bytes=40_000))
    service.request("req-quiet", "quiet")
    for number in range(600):
        service.request(f"req-{number}", "loud")
    assert found(file, "req-quiet")
    assert not found(file, "req-0")


def test_old_traces_are_deleted(file: Path) -> None:
    Service(file).request("req-old")
    Service(file, bounds=Bounds(age_seconds=0)).request("req-new")
    assert not found(file, "req-old")


def test_of_a_trace_with_too_many_spans_the_newest_are_kept(file: Path) -> None:
    service = Service(file, bounds=Bounds(spans_per_trace=20))
    for number in range(1000):
        service.request(f"req-{number}", trace_id=7)
    assert not found(file, "req-0")
    assert found(file, "req-999")


def test_long_attributes_are_cut(file: Path) -> None:
    service = Service(file)
    attributes = {"genaifactory.request_id": "req-1", "url.path": "/" + "x" * 10_000}
    service.tracer.start_span("GET", attributes=attributes).end()
    (span,) = found(file, "req-1")
    assert len(span.attributes["url.path"]) == 256


def test_the_file_is_private_to_its_owner(file: Path) -> None:
    Service(file).request("req-1")
    for path in (file, *file.parent.glob("spans.sqlite-*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("garbage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_replaced_once_for_all_services(file: Path, garbage: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(garbage)
    services = [Service(file), Service(file, "orchestrator")]
    for number in range(3):
        for name, service in enumerate(services):
            service.request(f"req-{number}-{name}")
    assert found(file, "req-2-0")
    assert found(file, "req-2-1")


def test_a_file_without_tables_gets_them(file: Path) -> None:
    file.parent.mkdir()
    file.touch()
    Service(file).request("req-1")
    assert found(file, "req-1")


def test_a_file_that_is_removed_is_created_again(file: Path) -> None:
    service = Service(file)
    service.request("req-1")
    for path in file.parent.iterdir():
        path.unlink()
    service.request("req-2")
    assert found(file, "req-2")


def test_spans_that_cannot_be_written_are_dropped_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    exporter = Exporter(tmp_path / "file" / "spans.sqlite")
    spans: list[ReadableSpan] = [ReadableSpan("x", SpanContext(1, 1, is_remote=False))]
    with caplog.at_level(logging.WARNING):
        assert [exporter.export(spans) for _ in range(3)] == [SpanExportResult.FAILURE] * 3
    assert len(caplog.records) == 1


def test_services_that_start_together_lose_no_span_and_show_no_file_without_tables(tmp_path: Path) -> None:
    names = ("gateway", "orchestrator", "monitor")
    for number in range(40):
        file, together = tmp_path / str(number) / "spans.sqlite", threading.Barrier(len(names))

        def write(name: str, file: Path = file, together: threading.Barrier = together) -> None:
            service = Service(file, name)
            together.wait()
            service.request(f"req-{name}")
            service.exporter.shutdown()

        with ThreadPoolExecutor(len(names)) as threads:
            writing = [threads.submit(write, name) for name in names]
            while not all(future.done() for future in writing):
                with span_store.reading(file) as reader:
                    assert reader is None or len(reader.of_request("req-monitor")) <= 1
        assert [span.service for name in names for span in found(file, f"req-{name}")] == [*names]


def test_there_is_no_reader_without_a_file(tmp_path: Path) -> None:
    with span_store.reading(tmp_path / "none.sqlite") as reader:
        assert reader is None


def _telemetry(service: str, file: Path) -> Telemetry:
    return Telemetry(service, settings.Telemetry(spans_file=file))


def test_traces_of_the_gateway_are_stored_and_those_of_background_work_are_not(file: Path) -> None:
    gateway, monitor = _telemetry("gateway", file), _telemetry("monitor", file)
    with gateway.span("POST", attributes={"genaifactory.request_id": "req-1"}):
        carried = telemetry.inject()
    context = telemetry.extract(carried)
    monitor.tracer.start_span("record", context, attributes={"genaifactory.request_id": "req-1"}).end()
    monitor.tracer.start_span("sweep", attributes={"genaifactory.request_id": "req-2"}).end()
    gateway.close()
    monitor.close()
    assert [span.service for span in found(file, "req-1")] == ["gateway", "monitor"]
    assert found(file, "req-2") == []


@pytest.mark.parametrize("sampled", ["00", "01"])
def test_the_gateway_begins_a_trace_of_its_own_with_a_link_to_the_clients(file: Path, sampled: str) -> None:
    gateway = _telemetry("gateway", file)
    parent, links = gateway.caller([("traceparent", f"00-{'a' * 32}-{'b' * 16}-{sampled}")])
    gateway.tracer.start_span("POST", parent, links=links, attributes={"genaifactory.request_id": "req-1"}).end()
    gateway.close()
    (span,) = found(file, "req-1")
    assert span.trace_id != "a" * 32
    assert span.parent_id == ""
    assert span.attributes[span_store.CALLER_TRACE] == "a" * 32


def test_nothing_is_stored_where_a_collector_is_set(file: Path) -> None:
    both = settings.Telemetry(spans_file=file, otlp_endpoint="http://127.0.0.1:1")
    with Telemetry("gateway", both).span("POST"):
        pass
    assert not file.exists()
