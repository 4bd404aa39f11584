"""The gRPC API: the same admission and answers as HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable
from typing import Any

import grpc.aio
import pytest

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import errors
from genaifactory_common.errors import ContentBlocked, FactoryError, Reason, UpstreamFailed
from genaifactory_common.testing import orchestrator as script
from tests.unit.gateway.conftest import Gateway

USER, BETA = "sk-acme-user", "sk-beta-user"
QUESTION = types_pb2.Message(role=types_pb2.ROLE_USER, content="Xin chào?")


def _with(key: str | None) -> tuple[tuple[str, str], ...]:
    return () if key is None else (("authorization", f"Bearer {key}"),)


def _chat(
    gateway: Gateway, key: str | None = USER, **fields: Any
) -> grpc.aio.UnaryStreamCall[gateway_pb2.ChatRequest, gateway_pb2.ChatResponse]:
    request = gateway_pb2.ChatRequest(**({"model": "chat", "messages": [QUESTION]} | fields))
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    return stub.Chat(request, metadata=_with(key), timeout=10)


async def _error(call: AsyncIterable[object] | Awaitable[object]) -> FactoryError:
    try:
        if isinstance(call, AsyncIterable):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return errors.from_rpc(error)
    pytest.fail("the call did not fail")


async def test_an_answer_is_streamed_with_its_request_id_and_done(gateway: Gateway) -> None:
    citation = types_pb2.Citation(number=1, passage_id="p1", document_id="d1", title="T", uri="u")
    gateway.orchestrator.script = [
        script.route(),
        script.delta("Xin "),
        script.tool_call(call_id="c1", name="f", arguments="{}"),
        script.done(citations=[citation]),
    ]
    parts = [part async for part in _chat(gateway, sampling=types_pb2.Sampling(temperature=0.5))]
    assert [part.WhichOneof("part") for part in parts] == ["delta", "tool_call", "done"]
    assert parts[0].delta == "Xin "
    assert parts[1].tool_call.name == "f"
    assert parts[2].done.citations[0] == citation
    assert parts[2].done.usage.prompt_tokens == 7
    assert {part.request_id for part in parts} == {gateway.orchestrator.requests[0].request_id}
    assert gateway.orchestrator.requests[0].sampling.temperature == 0.5
    assert gateway.orchestrator.callers[0].tenant == "acme"


async def test_a_call_with_two_keys_is_refused(gateway: Gateway) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    call = stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=(*_with(USER), *_with(BETA)), timeout=10)
    error = await _error(call)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert "more than one authorization" in error.message


async def test_done_has_masked_entities_and_cache_use_and_fresh_bypasses_the_cache(gateway: Gateway) -> None:
    first = script.opened(script.delta("Xin chào."), masked={"VN_CCCD": 1}, cache=types_pb2.CACHE_USE_BYPASS)
    gateway.orchestrator.script = [first, script.done()]
    *_, end = [part async for part in _chat(gateway, fresh=True)]
    assert [(each.entity_type, each.count) for each in end.done.masked] == [("VN_CCCD", 1)]
    assert end.done.cache == types_pb2.CACHE_USE_BYPASS
    assert gateway.orchestrator.requests[0].fresh


@pytest.mark.parametrize(
    ("key", "fields", "reason", "field"),
    [
        (None, {}, Reason.UNAUTHENTICATED, None),
        ("sk-wrong", {}, Reason.UNAUTHENTICATED, None),
        ("sk-acme-viewer", {}, Reason.PERMISSION_DENIED, None),
        ("sk-acme-chatter", {"model": "rag"}, Reason.PERMISSION_DENIED, "model"),
        (USER, {"model": "secret-plan"}, Reason.MODEL_NOT_FOUND, "model"),
        (USER, {"model": ""}, Reason.MODEL_NOT_FOUND, "model"),
        (USER, {"messages": []}, Reason.INVALID_ARGUMENT, "messages"),
        (USER, {"messages": [types_pb2.Message(content="a")]}, Reason.INVALID_ARGUMENT, "messages[0].role"),
        (
            USER,
            {"messages": [types_pb2.Message(role=types_pb2.ROLE_USER, content="\0")]},
            Reason.INVALID_ARGUMENT,
            "messages[0].content",
        ),
        (
            USER,
            {"messages": [types_pb2.Message(role=types_pb2.ROLE_USER)]},
            Reason.INVALID_ARGUMENT,
            "messages[0].content",
        ),
        (USER, {"messages": [QUESTION] * 2049}, Reason.INVALID_ARGUMENT, "messages"),
        (USER, {"sampling": types_pb2.Sampling(temperature=3)}, Reason.INVALID_ARGUMENT, "sampling.temperature"),
        (
            USER,
            {"sampling": types_pb2.Sampling(temperature=float("nan"))},
            Reason.INVALID_ARGUMENT,
            "sampling.temperature",
        ),
        (USER, {"sampling": types_pb2.Sampling(top_p=0)}, Reason.INVALID_ARGUMENT, "sampling.top_p"),
        (USER, {"sampling": types_pb2.Sampling(max_tokens=0)}, Reason.INVALID_ARGUMENT, "sampling.max_tokens"),
        (USER, {"sampling": types_pb2.Sampling(n=17)}, Reason.INVALID_ARGUMENT, "sampling.n"),
        (USER, {"sampling": types_pb2.Sampling(stop=["a"] * 5)}, Reason.INVALID_ARGUMENT, "sampling.stop"),
        (USER, {"sampling": types_pb2.Sampling(stop=[""])}, Reason.INVALID_ARGUMENT, "sampling.stop[0]"),
        (USER, {"sampling": types_pb2.Sampling(top_logprobs=2)}, Reason.INVALID_ARGUMENT, "sampling.top_logprobs"),
        (USER, {"tools": [types_pb2.Tool(name="a b")]}, Reason.INVALID_ARGUMENT, "tools[0].name"),
        (
            USER,
            {"tool_choice": types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_REQUIRED)},
            Reason.INVALID_ARGUMENT,
            "tool_choice",
        ),
        (USER, {"conversation_id": "a/b"}, Reason.INVALID_ARGUMENT, "conversation_id"),
        (USER, {"user": "u" * 257}, Reason.INVALID_ARGUMENT, "user"),
    ],
)
async def test_a_wrong_request_gets_its_clear_error(
    gateway: Gateway, key: str | None, fields: dict[str, Any], reason: Reason, field: str | None
) -> None:
    error = await _error(_chat(gateway, key, **fields))
    assert (error.reason, error.field) == (reason, field)
    assert gateway.orchestrator.requests == []


@pytest.mark.parametrize("failure", [ContentBlocked("blocked"), UpstreamFailed("down", retry_after_seconds=2.0)])
async def test_an_error_from_upstream_keeps_its_meaning(gateway: Gateway, failure: FactoryError) -> None:
    gateway.orchestrator.script = [failure]
    error = await _error(_chat(gateway))
    assert (type(error), error.message) == (type(failure), failure.message)
    assert error.retry_after_seconds == failure.retry_after_seconds


async def test_http_and_grpc_share_one_limit(gateway: Gateway) -> None:
    assert (await gateway.chat(BETA)).status_code == 200
    assert [part async for part in _chat(gateway, BETA)]
    assert (await gateway.chat(BETA)).status_code == 200
    error = await _error(_chat(gateway, BETA))
    assert error.reason is Reason.RATE_LIMITED
    assert error.retry_after_seconds == pytest.approx(20.0)


async def test_a_cancelled_call_cancels_the_work_at_once(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Xin "), asyncio.Event()]
    call = _chat(gateway)
    part = await call.read()
    assert isinstance(part, gateway_pb2.ChatResponse)
    assert part.delta == "Xin "
    call.cancel()
    async with asyncio.timeout(10):
        await gateway.orchestrator.cancelled.wait()


async def test_texts_are_embedded_in_order(gateway: Gateway) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    request = gateway_pb2.EmbedRequest(model="minilm", texts=["a", "bb"])
    response = await stub.Embed(request, metadata=_with(USER))
    assert [vector.values[2] for vector in response.embeddings] == [1.0, 2.0]
    error = await _error(stub.Embed(gateway_pb2.EmbedRequest(model="minilm", texts=["a", " "]), metadata=_with(USER)))
    assert error.field == "texts[1]"


async def test_models_are_listed_with_their_task(gateway: Gateway) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    response = await stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=_with(USER))
    assert [(m.name, m.task) for m in response.models] == [("chat", "chat"), ("minilm", "embedding"), ("rag", "rag")]


async def test_feedback_and_usage_reach_monitor_with_the_callers_identity(gateway: Gateway) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
    request_id = "req-" + "a" * 32
    gateway.monitor.known_requests.add(request_id)
    request = gateway_pb2.SubmitFeedbackRequest(request_id=request_id, rating=gateway_pb2.RATING_DOWN, correction="Huế")
    response = await stub.SubmitFeedback(request, metadata=_with(USER))
    assert response.request_known
    stored = gateway.monitor.feedback[response.feedback_id]
    assert (stored.rating, stored.correction) == (monitor_pb2.RATING_DOWN, "Huế")
    gateway.monitor.usage = [monitor_pb2.UsageRow(day="2026-11-21", tenant="acme", key_id="user", requests=4)]
    usage = await stub.GetUsage(gateway_pb2.GetUsageRequest(), metadata=_with(USER))
    assert [(row.day, row.key_id, row.requests) for row in usage.rows] == [("2026-11-21", "user", 4)]
    assert {caller.tenant for caller in gateway.monitor.callers} == {"acme"}
    bad = gateway_pb2.SubmitFeedbackRequest(request_id="x", rating=gateway_pb2.RATING_UP)
    assert (await _error(stub.SubmitFeedback(bad, metadata=_with(USER)))).field == "request_id"


_METHODS = [
    *(f"/{service.full_name}/{method.name}" for service in gateway_pb2.DESCRIPTOR.services_by_name.values()
      for method in service.methods),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]  # fmt: skip


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\x7fabc", b"GET / HTTP/1.1\r\n\r\n"], ids=repr)
@pytest.mark.parametrize("method", _METHODS)
async def test_an_invalid_message_is_an_invalid_argument(gateway: Gateway, method: str, garbage: bytes) -> None:
    call: grpc.aio.StreamStreamCall[bytes, bytes] | grpc.aio.UnaryStreamCall[bytes, bytes]
    if "Reflection" in method:
        streamed: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = gateway.channel.stream_stream(method)
        call = streamed(iter([garbage]), timeout=10)
    else:
        whole: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = gateway.channel.unary_stream(method)
        call = whole(garbage, metadata=_with("sk-acme-admin"), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = errors.from_rpc(failed.value)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.message.startswith(f"The request of {method.lstrip('/')} is no protobuf message")
    assert "DecodeError" not in error.message


async def test_an_evaluation_reaches_the_orchestrator_for_a_key_with_the_permission(gateway: Gateway) -> None:
    wanted = types_pb2.Evaluation(run="eval-1", adapter="leave-7", prompt="rag@2", index_version="v0")
    async for _ in _chat(gateway, "sk-acme-admin", evaluation=wanted):
        pass
    assert [request.evaluation for request in gateway.orchestrator.requests] == [wanted]


async def test_an_evaluation_by_a_key_without_the_permission_is_refused_before_any_call(gateway: Gateway) -> None:
    error = await _error(_chat(gateway, evaluation=types_pb2.Evaluation(run="eval-1")))
    assert error.reason is Reason.PERMISSION_DENIED
    assert "'evaluate'" in error.message
    assert not gateway.orchestrator.requests
    error = await _error(_chat(gateway, "sk-acme-admin", evaluation=types_pb2.Evaluation()))
    assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "evaluation.run")


async def test_a_tester_chooses_an_arm_and_other_keys_are_refused_before_any_call(gateway: Gateway) -> None:
    async for _ in _chat(gateway, "sk-acme-admin", arm="eight"):
        pass
    assert [request.arm for request in gateway.orchestrator.requests] == ["eight"]
    error = await _error(_chat(gateway, arm="eight"))
    assert error.reason is Reason.PERMISSION_DENIED
    assert "'evaluate'" in error.message
    error = await _error(_chat(gateway, "sk-acme-admin", arm="two words"))
    assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "arm")
    assert len(gateway.orchestrator.requests) == 1
