"""Fields without effect: they are ignored, and a header of the response names them."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory_gateway.openai import fields
from tests.unit.gateway.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = {"role": "user", "content": "Xin chào?"}
IGNORED = "x-genaifactory-ignored"
STRICT = {"x-genaifactory-strict": "true"}


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [QUESTION]} | fields


async def _chat(gateway: Gateway, headers: Any = None, **fields: Any) -> Any:
    return await gateway.post("/v1/chat/completions", _body(**fields), headers=headers)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"run": "7"}},
        {"store": True},
        {"parallel_tool_calls": False},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"prediction": {"type": "content", "content": "Xin chào"}},
        {"service_tier": "flex"},
        {"prompt_cache_key": "k" * 1000},
        {"prompt_cache_retention": "24h"},
        {"extra_of_next_year": [1, {"a": None}]},
        {"temprature": 1},
        {"min_q": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_field_without_effect_is_named_in_a_response_header(
    lasting_gateway: Gateway, fields: dict[str, Any], stream: bool
) -> None:
    response = await _chat(lasting_gateway, stream=stream, **fields)
    assert response.status_code == 200, response.text
    assert response.headers[IGNORED] == next(iter(fields))
    strict = await _chat(lasting_gateway, headers=STRICT, stream=stream, **fields)
    error = strict.json()["error"]
    assert (strict.status_code, error["code"], error["param"]) == (400, "unknown_field", next(iter(fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}},
        {"logit_bias": None},
        {"metadata": {}},
        {"metadata": None},
        {"store": False},
        {"parallel_tool_calls": True},
        {"service_tier": "auto"},
        {"functions": None},
        {"audio": None},
        {"extra_of_next_year": None},
        {"safety_identifier": "u1"},
        {"modalities": ["text"]},
    ],
    ids=str,
)
async def test_a_default_value_is_accepted_silently(lasting_gateway: Gateway, fields: dict[str, Any]) -> None:
    response = await _chat(lasting_gateway, headers=STRICT, **fields)
    assert response.status_code == 200, response.text
    assert IGNORED not in response.headers


async def test_fields_within_messages_are_named_once(lasting_gateway: Gateway) -> None:
    history = [
        QUESTION,
        {"role": "assistant", "content": "Chào.", "reasoning_content": "…", "provider_specific_fields": {"a": 1}},
        QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "Chào.", "cache_control": {}}], "reasoning": "…"},
        QUESTION | {"reasoning_content": "…"},
    ]
    response = await _chat(
        lasting_gateway, messages=history, stream=True, stream_options={"include_usage": True, "x": 1}
    )
    assert response.status_code == 200
    assert response.headers[IGNORED] == (
        "messages[].content[].cache_control, messages[].provider_specific_fields, messages[].reasoning, "
        "messages[].reasoning_content, stream_options.x"
    )
    assert [m.content for m in lasting_gateway.orchestrator.requests[-1].messages][1::2] == ["Chào.", "Chào."]


async def test_an_error_hidden_by_a_field_without_effect_is_found(lasting_gateway: Gateway) -> None:
    response = await _chat(lasting_gateway, foo=1, temperature=9)
    assert response.json()["error"]["param"] == "temperature"


@pytest.mark.parametrize("bias", [{"50256": -100}, {"a": 1}, 5, []])
async def test_logit_bias_is_refused(lasting_gateway: Gateway, bias: object) -> None:
    response = await _chat(lasting_gateway, logit_bias=bias)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "logit_bias")
    assert error["message"] == "'logit_bias' is not supported: leave it out, or send {}."


@pytest.mark.parametrize(
    ("fields", "path", "hint"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"max_token": 1}, "max_token", "did you mean 'max_tokens'?"),
        ({"min_q": 1}, "min_q", "did you mean 'min_p'?"),
        ({"typical_p": 1}, "typical_p", "leave it out."),
        ({"inputs": "a"}, "inputs", "leave it out."),
        ({"messages": [QUESTION | {"contents": "a"}]}, "messages[0].contents", "did you mean 'content'?"),
        ({"tools": [{"type": "function", "function": {"name": "f", "params": {}}}]}, "tools[0].function.params", ""),
    ],
)
async def test_errors_for_a_strict_client_suggest_the_right_name(
    lasting_gateway: Gateway, fields: dict[str, Any], path: str, hint: str
) -> None:
    response = await _chat(lasting_gateway, headers=STRICT, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, path)
    assert error["message"].startswith(f"Unknown field '{path}'; {hint}")


async def test_strict_is_true_or_false(lasting_gateway: Gateway) -> None:
    response = await _chat(lasting_gateway, headers={"x-genaifactory-strict": "yes"})
    assert response.status_code == 400
    assert "x-genaifactory-strict must be true or false" in response.json()["error"]["message"]
    response = await _chat(lasting_gateway, headers={"x-genaifactory-strict": "false"}, foo=1)
    assert response.status_code == 200


async def test_embeddings_name_ignored_fields_and_feedback_refuses_unknown_ones(lasting_gateway: Gateway) -> None:
    body = {"model": "minilm", "input": "a", "input_type": "query"}
    response = await lasting_gateway.post("/v1/embeddings", body)
    assert (response.status_code, response.headers[IGNORED]) == (200, "input_type")
    feedback = {"request_id": "req-" + "0" * 32, "rating": "down", "corection": "Huế"}
    response = await lasting_gateway.post("/v1/feedback", feedback)
    error = response.json()["error"]
    assert (response.status_code, error["message"]) == (400, "Unknown field 'corection'; did you mean 'correction'?")


async def test_no_field_name_can_end_the_header(lasting_gateway: Gateway) -> None:
    fields: dict[str, Any] = {"a\r\nset-cookie: x": 1, "tên": 1, "b" * 300: 1, "": 1, " ": 1}
    response = await _chat(lasting_gateway, **fields)
    assert response.status_code == 200
    assert response.headers[IGNORED] == "?"
    assert "set-cookie" not in response.headers


async def test_thousands_of_ignored_fields_are_counted_and_not_listed(lasting_gateway: Gateway) -> None:
    response = await _chat(lasting_gateway, **{f"field_{i}": i for i in range(5000)})
    assert response.status_code == 200
    assert response.headers[IGNORED].count(",") == 20
    assert response.headers[IGNORED].endswith("field_1014, and 4980 more")


async def test_a_header_is_bounded_whatever_the_names() -> None:
    assert len(fields.header(["x" * 100] + [f"{i}" * 50 for i in range(1000)])) < 2500


async def test_a_field_name_that_begins_with_a_tilde_is_named_whole(lasting_gateway: Gateway) -> None:
    response = await _chat(lasting_gateway, messages=[QUESTION | {"~text": 1}])
    assert response.headers[IGNORED] == "?"
    strict = await _chat(lasting_gateway, headers=STRICT, messages=[QUESTION | {"~text": 1}])
    assert strict.json()["error"]["param"] == "messages[0].~text"


async def test_a_body_with_too_many_unknown_fields_is_refused_as_a_whole(
    lasting_gateway: Gateway,
) -> None:
    few = await _chat(lasting_gateway, **{f"x{i}": 1 for i in range(200)})
    assert few.status_code == 200
    many = await _chat(lasting_gateway, **{f"x{i}": 1 for i in range(20_000)})
    assert many.status_code == 400
    assert "20000 fields" in many.json()["error"]["message"]
