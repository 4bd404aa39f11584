"""Chat completions over HTTP, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import ContentBlocked, UpstreamFailed
from genaifactory_common.testing import orchestrator as script
from tests.unit.gateway.conftest import Gateway


def _events(text: str) -> list[Any]:
    """The data of each server-sent event."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "", "a stream ends with an empty line"
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def test_an_answer_is_one_chat_completion(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.route(), script.delta("Xin "), script.delta("chào."), script.done()]
    response = await gateway.chat()
    assert response.status_code == 200
    body = response.json()
    assert body["id"] == "chatcmpl-" + response.headers["x-request-id"].removeprefix("req-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "chat"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Xin chào.", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream_is_a_role_then_deltas_then_the_reason_then_done(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.route(), script.delta("Xin "), script.delta("chào."), script.done()]
    response = await gateway.chat(stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, end = _events(response.text)
    assert end == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Xin "},
        {"content": "chào."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-" + response.headers["x-request-id"].removeprefix("req-")}
    assert all("usage" not in chunk for chunk in chunks)


async def test_an_error_before_the_first_text_has_its_own_status_also_for_a_stream(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.route(), ContentBlocked("The question was blocked.")]
    response = await gateway.chat(stream=True)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "content_blocked"


async def test_an_error_within_a_stream_is_its_last_event_without_done(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Xin "), UpstreamFailed("No model could go on.")]
    response = await gateway.chat(stream=True)
    *chunks, last = _events(response.text)
    assert last["error"] == {
        "message": "No model could go on.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "upstream_failed",
    }
    assert chunks[-1]["choices"][0]["delta"] == {"content": "Xin "}


async def test_a_stream_that_ends_without_done_upstream_is_an_error_not_an_answer(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Xin ")]
    assert (await gateway.chat()).json()["error"]["code"] == "upstream_failed"
    assert _events((await gateway.chat(stream=True)).text)[-1]["error"]["code"] == "upstream_failed"


async def test_the_request_is_converted_for_the_orchestrator(gateway: Gateway) -> None:
    response = await gateway.chat(
        model="rag",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        temperature=0,
        top_p=0.5,
        top_k=40,
        max_completion_tokens=9,
        stop="END",
        seed=-5,
        n=2,
        logprobs=True,
        top_logprobs=2,
        presence_penalty=1,
        min_p=0.25,
        repetition_penalty=1.5,
        chat_template_kwargs={"enable_thinking": False},
        tools=[
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": [1, None]}}}},
            }
        ],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        conversation_id="c-1",
        user="u7",
    )
    assert response.status_code == 200, response.text
    sent = gateway.orchestrator.requests[0]
    assert sent.request_id == response.headers["x-request-id"]
    assert (sent.route, sent.conversation_id, sent.user) == ("rag", "c-1", "u7")
    assert [(m.role, m.content) for m in sent.messages] == [
        (types_pb2.ROLE_SYSTEM, "Be brief."),
        (types_pb2.ROLE_USER, "One.\nTwo?"),
        (types_pb2.ROLE_ASSISTANT, ""),
        (types_pb2.ROLE_TOOL, "42"),
    ]
    assert sent.messages[2].tool_calls[0].name == "f"
    sampling = sent.sampling
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0, 0.5, 40, 9)
    assert (list(sampling.stop), sampling.seed, sampling.n) == (["END"], -5, 2)
    assert (sampling.logprobs, sampling.top_logprobs, sampling.presence_penalty) == (True, 2, 1)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.25, 1.5)
    assert dict(sampling.chat_template_kwargs) == {"enable_thinking": False}
    assert not sampling.HasField("frequency_penalty")
    assert dict(sent.tools[0].parameters)["type"] == "object"
    assert (sent.tool_choice.mode, sent.tool_choice.name) == (types_pb2.ToolChoice.MODE_NAMED, "f")
    assert dict(sent.output_format.json_schema) == {"type": "object"}


async def test_structured_outputs_of_vllm_are_converted_to_the_output_format(gateway: Gateway) -> None:
    for given, kind in (
        ({"json": {"type": "object"}}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["yes", "no"]}, "choice"),
        ({"grammar": "root ::= 'a'"}, "grammar"),
    ):
        assert (await gateway.chat(structured_outputs=given)).status_code == 200
        assert gateway.orchestrator.requests[-1].output_format.WhichOneof("constraint") == kind
    assert (await gateway.chat(response_format={"type": "json_object"})).status_code == 200
    assert gateway.orchestrator.requests[-1].output_format.json_object


async def test_the_orchestrator_gets_the_signed_caller(gateway: Gateway) -> None:
    response = await gateway.chat()
    caller = gateway.orchestrator.callers[0]
    assert (caller.tenant, caller.principal, caller.key_id, caller.role) == ("acme", "user", "user", "user")
    assert caller.groups == ("staff",)
    assert gateway.orchestrator.request_ids == [response.headers["x-request-id"]]


async def test_citations_are_url_annotations_of_the_message_and_of_the_last_delta(gateway: Gateway) -> None:
    citation = types_pb2.Citation(
        number=1, passage_id="p9", document_id="d4", title="Hướng dẫn", uri="guide.md", start_offset=9, end_offset=12
    )
    gateway.orchestrator.script = [script.delta("Xin chào [1]."), script.done(citations=[citation])]
    wanted = {
        "type": "url_citation",
        "url_citation": {
            "start_index": 9,
            "end_index": 12,
            "url": "guide.md",
            "title": "Hướng dẫn",
            "number": 1,
            "document_id": "d4",
            "passage_id": "p9",
        },
    }
    message = (await gateway.chat()).json()["choices"][0]["message"]
    assert message["annotations"] == [wanted]
    assert message["content"][9:12] == "[1]"
    *_, last, _ = _events((await gateway.chat(stream=True)).text)
    assert last["choices"][0]["delta"] == {"annotations": [wanted]}


async def test_requested_usage_is_the_last_chunk_without_choices(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("Xin chào."), script.done(cached_prompt_tokens=4)]
    response = await gateway.chat(stream=True, stream_options={"include_usage": True})
    *chunks, last, end = _events(response.text)
    assert end == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_tool_calls_are_joined_from_their_pieces_and_streamed_as_pieces(gateway: Gateway) -> None:
    gateway.orchestrator.script = [
        script.tool_call(call_id="c1", name="search", arguments='{"q":', index=0),
        script.tool_call(arguments='"gạo"}', index=0),
        script.tool_call(call_id="c2", name="now", arguments="{}", index=1),
        script.done(finish_reasons=[types_pb2.FINISH_REASON_TOOL_CALLS]),
    ]
    choice = (await gateway.chat()).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q":"gạo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]
    chunks = _events((await gateway.chat(stream=True)).text)[1:4]
    assert [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": '"gạo"}'}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]


async def test_several_choices_and_log_probabilities_stay_apart(gateway: Gateway) -> None:
    token = types_pb2.TokenLogprob(token="có", logprob=-0.5, top=[types_pb2.TokenLogprob(token="có", logprob=-0.5)])
    gateway.orchestrator.script = [
        script.delta("có", choice=1, logprobs=[token]),
        script.delta("không", choice=0),
        script.done(finish_reasons=[types_pb2.FINISH_REASON_LENGTH, types_pb2.FINISH_REASON_CONTENT_FILTER]),
    ]
    first, second = (await gateway.chat(n=2)).json()["choices"]
    assert (first["message"]["content"], first["finish_reason"]) == ("không", "length")
    assert (second["message"]["content"], second["finish_reason"]) == ("có", "content_filter")
    assert second["logprobs"]["content"] == [
        {
            "token": "có",
            "logprob": -0.5,
            "bytes": [99, 195, 179],
            "top_logprobs": [{"token": "có", "logprob": -0.5, "bytes": [99, 195, 179]}],
        }
    ]
    chunks = _events((await gateway.chat(n=2, stream=True)).text)[:-1]
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 1, 0, 0, 1]
    assert chunks[2]["choices"][0]["logprobs"]["content"][0]["token"] == "có"


async def test_masked_entities_and_cache_use_are_in_the_headers_and_the_body(gateway: Gateway) -> None:
    first = script.opened(script.delta("Xin chào."), masked={"EMAIL_ADDRESS": 2, "VN_CCCD": 1})
    gateway.orchestrator.script = [first, script.done()]
    whole, stream = await gateway.chat(), await gateway.chat(stream=True)
    for response in (whole, stream):
        assert response.headers["x-genaifactory-masked"] == "EMAIL_ADDRESS=2, VN_CCCD=1"
        assert response.headers["x-genaifactory-cache"] == "miss"
    said = {
        "cache": "miss",
        "masked": [{"entity_type": "EMAIL_ADDRESS", "count": 2}, {"entity_type": "VN_CCCD", "count": 1}],
    }
    opening, *others, _ = _events(stream.text)
    assert whole.json() | said == whole.json()
    assert opening | said == opening
    assert not any(chunk.keys() & said.keys() for chunk in others)


async def test_an_answer_without_text_has_its_headers_too(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.opened(script.done(), cache=types_pb2.CACHE_USE_BYPASS)]
    whole, stream = await gateway.chat(), await gateway.chat(stream=True)
    assert whole.headers["x-genaifactory-cache"] == stream.headers["x-genaifactory-cache"] == "bypass"
    assert whole.json()["cache"] == "bypass"
    assert "masked" not in whole.json()
    assert "x-genaifactory-masked" not in whole.headers


@pytest.mark.parametrize(
    ("cache_control", "fresh"),
    [("no-cache", True), ("max-age=0, No-Cache", True), ("max-age=0", False), ("", False), ("x-no-cache", False)],
)
async def test_cache_control_no_cache_bypasses_the_cache(gateway: Gateway, cache_control: str, fresh: bool) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}
    await gateway.post("/v1/chat/completions", body, headers={"Cache-Control": cache_control})
    assert gateway.orchestrator.requests[0].fresh is fresh


async def test_the_header_of_a_tester_chooses_an_arm(gateway: Gateway) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}
    for arm in ("eight", ""):
        headers = {"X-GenAIFactory-Arm": arm}
        response = await gateway.post("/v1/chat/completions", body, key="sk-acme-admin", headers=headers)
        assert response.status_code == 200
    assert [request.arm for request in gateway.orchestrator.requests] == ["eight", ""]


@pytest.mark.parametrize(
    ("key", "arm", "status", "problem"),
    [
        ("sk-acme-user", "eight", 403, "'evaluate'"),
        ("sk-acme-admin", "two words", 400, "'arm' must be the name of an arm"),
        ("sk-acme-admin", "x" * 129, 400, "'arm' must be the name of an arm"),
    ],
)
async def test_an_arm_is_refused(gateway: Gateway, key: str, arm: str, status: int, problem: str) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Xin chào?"}]}
    response = await gateway.post("/v1/chat/completions", body, key=key, headers={"X-GenAIFactory-Arm": arm})
    assert (response.status_code, response.json()["error"]["param"]) == (status, "arm" if status == 400 else None)
    assert problem in response.json()["error"]["message"]
    assert not gateway.orchestrator.requests


async def test_a_tool_result_continues_a_stored_conversation(gateway: Gateway) -> None:
    gateway.orchestrator.script = [script.delta("42!"), script.done()]
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    assert (await gateway.chat(messages=[result])).status_code == 400
    assert (await gateway.chat(messages=[result], conversation_id="kept")).status_code == 200
    (sent,) = gateway.orchestrator.requests
    assert sent.messages[0].tool_call_id == "c1"
