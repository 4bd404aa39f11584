"""One trace shows a question's path through all six services (exported over OTLP to a collector in this test)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from genaifactory_common import settings
from genaifactory_local import testing, traces
from genaifactory_local.platform import Options
from genaifactory_local.testing import Platform
from genaifactory_local.traces import Node

QUESTION = "How many days of annual leave does an employee have?"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores what it receives: each span with the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource_spans in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope_spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def _collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # as generated
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(1)


def _path(service: str, spans: list[tuple[str, Span]]) -> list[str]:
    """The services from the root of the trace to the service's first span."""
    by_id = {span.span_id: (name, span) for name, span in spans}
    name, span = next((name, span) for name, span in spans if name == f"genaifactory-{service}")
    path = [name]
    while span.parent_span_id:
        name, span = by_id[span.parent_span_id]
        if name != path[0]:
            path.insert(0, name)
    return [name.removeprefix("genaifactory-") for name in path]


async def test_one_trace_shows_a_questions_path_through_all_six_services(tmp_path: Path) -> None:
    async with _collecting() as (collector, endpoint):
        options = Options(http_port=0, grpc_port=0, telemetry=settings.Telemetry(otlp_endpoint=endpoint))
        async with testing.running(tmp_path / "state", options=options) as platform:
            await platform.ingest([testing.SAMPLE])
            async with httpx.AsyncClient(trust_env=False) as client:
                response = await client.post(
                    f"{platform.openai_url}/chat/completions",
                    json={"model": "rag", "messages": [{"role": "user", "content": QUESTION}]},
                    headers={"Authorization": f"Bearer {platform.key}"},
                )
            assert response.status_code == 200
        # Leaving the platform sends the last spans.
    begun = [span for name, span in collector.spans if name == "genaifactory-gateway" and not span.parent_span_id]
    roots = [span for span in begun if not span.name.endswith("/Ingest")]  # uploads have a trace of their own
    assert len(roots) == 1
    trace = [(name, span) for name, span in collector.spans if span.trace_id == roots[0].trace_id]
    assert {name for name, _ in trace} == {
        f"genaifactory-{service}"
        for service in ("gateway", "orchestrator", "safety", "retriever", "modelserver", "monitor")
    }
    for service in ("safety", "retriever", "modelserver"):
        assert _path(service, trace) == ["gateway", "orchestrator", service]
    # The record is sent from a queue after the answer, in the same trace.
    assert _path("monitor", trace)[0] == "gateway"
    written = b"".join(span.SerializeToString() for _, span in collector.spans)
    assert b"annual leave" not in written
    assert platform.key.encode() not in written


async def _asked(platform: Platform, question: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(
            f"{platform.openai_url}/chat/completions",
            json={"model": "rag", "messages": [{"role": "user", "content": question}]},
            headers={"Authorization": f"Bearer {platform.key}"},
            timeout=30,
        )


def _bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def _services(nodes: list[Node]) -> set[str]:
    return {node.span.service for node in nodes}.union(*(_services(list(node.children)) for node in nodes))


async def test_without_a_collector_the_spans_of_an_answer_are_stored_without_any_text(platform: Platform) -> None:
    response = await _asked(platform, QUESTION)
    last = await asyncio.to_thread(traces.read, platform.state.spans_file, traces.LAST)
    by_header = await asyncio.to_thread(traces.read, platform.state.spans_file, response.headers["x-request-id"])
    by_answer = await asyncio.to_thread(traces.read, platform.state.spans_file, response.json()["id"])
    assert last == by_header == by_answer
    (root,) = traces.roots(last)
    assert root.span.name == "POST /v1/chat/completions"
    assert _services([root]) == {"gateway", "orchestrator", "safety", "retriever", "modelserver", "monitor"}
    shown = "\n".join(traces.details(span) for span in last)
    assert "extractive, tokens in" in shown
    assert "passages 5" in shown
    assert "input, allow, policy default" in shown
    kept = await asyncio.to_thread(_bytes, platform.state.spans_file.parent)
    assert b"genaifactory.passages" in kept
    assert b"annual leave" not in kept
    assert platform.key.encode() not in kept


async def test_a_request_that_the_gateway_refuses_has_a_trace(platform: Platform) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"{platform.openai_url}/models", headers={"Authorization": "Bearer no-key"})
    spans = await asyncio.to_thread(traces.read, platform.state.spans_file, response.headers["x-request-id"])
    assert [(span.service, traces.details(span)) for span in spans] == [("gateway", "HTTP 401")]
