"""The spans of a request as a tree that a terminal of any width shows."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Tracer, set_span_in_context
from rich.console import Console

from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_common.span_store import Exporter, Span
from genaifactory_local import traces

HEX = "0123456789abcdef" * 2
MS = 1_000_000
ROOT = Span("t" * 32, "1", "client's", "gateway", "POST /v1/chat/completions", 1000 * MS, 1100 * MS, False, "r")
ANSWER = Span(
    "t" * 32,
    "2",
    "1",
    "orchestrator",
    "genaifactory.orchestrator.v1.X/Answer",
    1010 * MS,
    1090 * MS,
    False,
    "r",
)
FAILED = Span(
    "t" * 32,
    "3",
    "2",
    "orchestrator",
    "chat big",
    1020 * MS,
    1050 * MS,
    True,
    "",
    {
        "gen_ai.request.model": "big",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.response.time_to_first_chunk": 0.0125,
        "error.type": "UPSTREAM_FAILED",
        "url.path": "/not/shown",
    },
)
RECORD = Span("t" * 32, "4", "2", "monitor", "record interaction", 1500 * MS, 1510 * MS, False, "")
SPANS = [ROOT, ANSWER, FAILED, RECORD]


def shown(width: int, spans: list[Span] = SPANS) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(traces.table(spans, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("text", [f"req-{HEX}", f"chatcmpl-{HEX}"])
def test_both_ids_of_a_request_are_accepted(text: str) -> None:
    assert traces.request_id(text) == f"req-{HEX}"


@pytest.mark.parametrize("text", ["", "req-", HEX, f"req-{HEX}0", f"req-{HEX}\n", "req-%", "LAST"])
def test_any_other_text_is_refused_and_the_error_names_the_right_forms(text: str) -> None:
    with pytest.raises(InvalidArgument, match="x-request-id"):
        traces.request_id(text)


def test_a_tree_shows_calls_with_their_start_and_duration() -> None:
    lines = [line.rstrip() for line in shown(140).splitlines()]
    assert lines[1].startswith("gateway POST /v1/chat/completions")
    assert "0.0 ms 100.0 ms ━━━━━━━━━━━━━━━━━━━━━━━━" in lines[1]
    assert lines[2].startswith("└─ orchestrator Answer")
    assert lines[3].startswith("   ├─ orchestrator chat big")
    assert "20.0 ms  30.0 ms     ━━━━━━━ " in lines[3]
    assert lines[3].endswith("big, tokens in 5, first token after 12.5 ms, UPSTREAM_FAILED")
    assert lines[4].startswith("   └─ monitor record interaction")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_shows_all_times_and_never_wraps(width: int) -> None:
    lines = shown(width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "500.0 ms  10.0 ms" in lines[-1]
    known = "".join(word for line in lines for word in line.split() if word != "│")
    assert "big,tokensin5,firsttokenafter12.5ms,UPSTREAM_FAILED" in known


def test_spans_whose_parents_are_missing_are_roots() -> None:
    orphan = replace(RECORD, parent_id="lost")
    assert [node.span for node in traces.roots([ROOT, orphan])] == [ROOT, orphan]
    assert [root["service"] for root in traces.plain([ROOT, orphan])] == ["gateway", "monitor"]


def test_the_error_for_a_file_that_is_no_database_names_it_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "spans.sqlite"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(Unavailable, match=r"spans\.sqlite cannot be read .* Delete it"):
        traces.read(file, traces.LAST)


@pytest.mark.allow_blocking
def test_a_service_that_writes_its_spans_last_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "spans.sqlite"

    def tracer(service: str) -> Tracer:
        provider = TracerProvider(resource=Resource.create({"service.name": f"genaifactory-{service}"}))
        provider.add_span_processor(SimpleSpanProcessor(Exporter(file)))  # written when a span ends
        return provider.get_tracer("t")

    request = tracer("gateway").start_span("POST", attributes={"genaifactory.request_id": f"req-{HEX}"})
    parent = set_span_in_context(request)
    late = tracer("safety").start_span("CheckText", parent)
    for service in ("orchestrator", "monitor"):
        tracer(service).start_span("call", parent).end()
    request.end()
    threading.Timer(0.5, late.end).start()  # as far as services' turns of writing may be apart
    assert {span.service for span in traces.read(file, f"req-{HEX}")} == {
        "gateway",
        "orchestrator",
        "monitor",
        "safety",
    }
