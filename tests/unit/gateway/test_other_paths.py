"""Embeddings, feedback, usage, health, metrics, the log and the trace."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import sqlite3
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from google.protobuf.struct_pb2 import ListValue
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import settings, span_store
from genaifactory_common.errors import ContentBlocked, UpstreamFailed
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.testing import orchestrator as script
from tests.unit.gateway.conftest import Gateway, Start


async def test_embeddings_are_numbers_or_base64_of_little_endian_floats(gateway: Gateway) -> None:
    body = {"model": "minilm", "input": ["Huế", "a b"], "dimensions": 3}
    numbers = (await gateway.post("/v1/embeddings", body)).json()
    assert numbers["data"][1] == {"object": "embedding", "index": 1, "embedding": pytest.approx([0.6, 0.8, 3.0])}
    assert numbers["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert numbers["model"] == "minilm"
    packed = (await gateway.post("/v1/embeddings", body | {"encoding_format": "base64"})).json()
    for one, other in zip(numbers["data"], packed["data"], strict=True):
        assert list(struct.unpack("<3f", base64.b64decode(other["embedding"]))) == one["embedding"]
    assert list(gateway.orchestrator.embed_requests[0].texts) == ["Huế", "a b"]


async def test_a_failed_embedding_returns_its_error_and_is_not_charged(gateway: Gateway) -> None:
    gateway.orchestrator.embed_error = UpstreamFailed("down")
    response = await gateway.post("/v1/embeddings", {"model": "minilm", "input": "a" * 9000}, key="sk-beta-user")
    assert response.status_code == 503
    gateway.orchestrator.embed_error = None
    response = await gateway.post("/v1/embeddings", {"model": "minilm", "input": "a" * 9000}, key="sk-beta-user")
    assert response.status_code == 200


async def test_a_disconnect_cancels_an_embedding(gateway: Gateway) -> None:
    gateway.orchestrator.embed_waits_for = asyncio.Event()
    request = asyncio.create_task(gateway.post("/v1/embeddings", {"model": "minilm", "input": "a"}))
    async with asyncio.timeout(10):
        await gateway.orchestrator.started.wait()
        request.cancel()
        await gateway.orchestrator.cancelled.wait()


async def test_feedback_is_joined_by_the_answers_id_and_stored_once(gateway: Gateway) -> None:
    answer = await gateway.chat()
    request_id = answer.headers["x-request-id"]
    gateway.monitor.known_requests.add(request_id)
    body = {
        "request_id": answer.json()["id"],
        "rating": "down",
        "correction": "Huế",
        "ground_truth": {"labels": [1, "đúng", None, True], "deep": {"score": 0.5}},
    }
    first, again = [await gateway.post("/v1/feedback", body) for _ in range(2)]
    assert first.status_code == 200
    assert first.json() == again.json()
    assert first.json()["request_known"] is True
    (stored,) = gateway.monitor.feedback.values()
    assert (stored.request_id, stored.rating, stored.correction) == (request_id, monitor_pb2.RATING_DOWN, "Huế")
    labels = stored.ground_truth["labels"]
    assert isinstance(labels, ListValue)
    assert list(labels) == [1, "đúng", None, True]
    assert gateway.monitor.callers[0].tenant == "acme"


async def test_feedback_of_two_tenants_never_collides(gateway: Gateway) -> None:
    body = {"request_id": "req-" + "1" * 32, "rating": "up", "idempotency_key": "k"}
    ids = {(await gateway.post("/v1/feedback", body, key=key)).json()["id"] for key in ("sk-acme-user", "sk-beta-user")}
    assert len(ids) == 2
    assert (await gateway.post("/v1/feedback", body)).json()["request_known"] is False


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "k"}], ids=["derived from the body", "the client's key"])
async def test_equal_feedback_of_two_callers_is_stored_twice(gateway: Gateway, key: dict[str, str]) -> None:
    body = {"request_id": "req-" + "1" * 32, "rating": "up"} | key
    for who in ("sk-acme-user", "sk-acme-colleague", "sk-acme-user"):
        assert (await gateway.post("/v1/feedback", body, key=who)).status_code == 200
    assert len(gateway.monitor.feedback) == 2


async def test_usage_is_the_tenants_rows_of_the_period(gateway: Gateway) -> None:
    gateway.monitor.usage = [
        monitor_pb2.UsageRow(
            day="2026-11-21",
            key_id="user",
            model="extractive",
            requests=3,
            errors=1,
            usage=types_pb2.TokenUsage(prompt_tokens=5, completion_tokens=2),
            cost_micros=12,
            currency="USD",
        )
    ]
    response = await gateway.get("/v1/usage?start_time=2026-11-01T00:00:00Z")
    assert response.json()["data"][0] == {
        "object": "usage",
        "day": "2026-11-21",
        "key_id": "user",
        "model": "extractive",
        "requests": 3,
        "errors": 1,
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
        "cost_micros": 12,
        "currency": "USD",
    }
    request = gateway.monitor.usage_requests[0]
    assert request.start_time.ToJsonString() == "2026-11-01T00:00:00Z"
    assert (request.tenant, request.HasField("end_time")) == ("", False)


async def test_a_key_without_the_permission_may_request_its_own_usage(gateway: Gateway) -> None:
    response = await gateway.get("/v1/usage", key="sk-acme-viewer")
    assert (response.status_code, response.json()["data"]) == (200, [])
    (caller,) = gateway.monitor.callers  # monitor decides by it
    assert (caller.key_id, caller.permissions) == ("viewer", ("models",))
    assert (await gateway.get("/v1/usage", key="sk-wrong")).status_code == 401


async def test_ready_means_that_the_orchestrator_serves(start: Start) -> None:
    async with start() as gateway:
        response = await gateway.http.get("/readyz")
        assert response.json() == {
            "status": "ready",
            "upstreams": {"orchestrator": "serving", "monitor": "serving"},
        }
        assert (await gateway.http.get("/healthz")).status_code == 200


async def test_readyz_reports_an_unreachable_orchestrator_within_its_deadline(start: Start) -> None:
    async with start(orchestrator_down=True) as gateway:
        response = await gateway.http.get("/readyz")
        assert response.status_code == 503
        assert response.json()["upstreams"] == {"orchestrator": "unreachable", "monitor": "serving"}
        assert (await gateway.http.get("/healthz")).status_code == 200
        answer = await gateway.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert "orchestrator" not in answer.text  # no internal address


async def test_metrics_count_requests_by_route_and_status_without_unbounded_names(gateway: Gateway) -> None:
    await gateway.chat()
    await gateway.get("/v1/models/rag")
    await gateway.http.request("PROPFIND", "/pot")
    text = (await gateway.http.get("/metrics")).text
    assert 'genaifactory_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    assert 'route="/v1/models/{model}"' in text
    assert 'genaifactory_http_requests_total{method="OTHER",route="unmatched",status="404"}' in text
    assert "/pot" not in text


async def test_the_log_has_one_line_for_a_request_without_its_content(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with start() as gateway:
        gateway.orchestrator.script = [ContentBlocked("blocked")]
        response = await gateway.chat(messages=[{"role": "user", "content": "my own secret"}])
    # The line is written after the answer; the gateway has stopped, so it is complete.
    (record,) = [record for record in caplog.records if record.name == "genaifactory.gateway.access"]
    fields = {name: value for name, value in record.__dict__.items() if name.startswith("genai_")}
    assert fields.pop("genai_duration_ms") >= 0
    assert fields == {
        "genai_request_id": response.headers["x-request-id"],
        "genai_tenant": "acme",
        "genai_key_id": "user",
        "genai_route": "/v1/chat/completions",
        "genai_status": 422,
        "genai_error": "CONTENT_BLOCKED",
    }
    assert "my own secret" not in caplog.text
    assert "sk-acme" not in caplog.text


@pytest.fixture
def traced() -> tuple[Telemetry, InMemorySpanExporter]:
    """A fixture, since reading the process's environment blocks."""
    exporter = InMemorySpanExporter()
    return Telemetry("gateway", exporter=exporter), exporter


async def test_a_trace_spans_client_gateway_and_upstream(
    start: Start, traced: tuple[Telemetry, InMemorySpanExporter]
) -> None:
    telemetry, exporter = traced
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with start(telemetry=telemetry) as gateway:
        gateway.orchestrator.script = [script.delta("a"), UpstreamFailed("down")]
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        headers = {"traceparent": f"00-{trace_id}-{parent}-01"}
        response = await gateway.post("/v1/chat/completions", body, headers=headers)
        upstream = gateway.orchestrator.metadata[0]["traceparent"]
    await asyncio.to_thread(telemetry.close)
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == trace_id
    assert f"{span.parent.span_id:016x}" == parent
    assert span.name == "POST /v1/chat/completions"
    assert upstream == f"00-{trace_id}-{span.context.span_id:016x}-01"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "genaifactory.request_id": response.headers["x-request-id"],
        "genaifactory.tenant": "acme",
        "http.response.status_code": 200,
        "error.type": "UPSTREAM_FAILED",
    }


async def test_a_tenant_that_names_anothers_trace_neither_joins_nor_grows_it(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "spans.sqlite"
    async with _kept(start, file) as gateway:
        victim = await gateway.get("/v1/models")
    spans = await asyncio.to_thread(_spans, file, victim)
    forged = f"00-{spans[0].trace_id}-{spans[0].span_id}-01"
    headers = {"authorization": "Bearer sk-beta-user", "traceparent": forged}
    async with _kept(start, file) as gateway:
        attack = await gateway.http.get("/v1/models", headers=headers)
        stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
        await stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=tuple(headers.items()))
    assert await asyncio.to_thread(_spans, file, victim) == spans
    (own,) = await asyncio.to_thread(_spans, file, attack)
    assert own.trace_id != spans[0].trace_id
    # The call by gRPC has no tenant in its span.
    assert await asyncio.to_thread(_tenants_of_traces, file) == ["", "acme", "beta"]


@contextlib.asynccontextmanager
async def _kept(start: Start, file: Path) -> AsyncIterator[Gateway]:
    """A gateway whose spans are in the file when it ends."""
    telemetry = await asyncio.to_thread(Telemetry, "gateway", settings.Telemetry(spans_file=file))
    async with start(telemetry=telemetry) as gateway:
        yield gateway
    await asyncio.to_thread(telemetry.close)


def _spans(file: Path, response: httpx.Response) -> list[span_store.Span]:
    with span_store.reading(file) as reader:
        return reader.of_request(response.headers["x-request-id"]) if reader is not None else []


def _tenants_of_traces(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return [tenant for (tenant,) in db.execute("SELECT tenant FROM traces ORDER BY tenant")]
