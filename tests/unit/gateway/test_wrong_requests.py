"""A table of wrong requests, each with its clear error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from genaifactory_common import bounds
from genaifactory_common.testing.images import part
from tests.unit.gateway.conftest import Gateway

# One gateway for the whole table, so that effects of a wrong request on later ones show.
pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = {"role": "user", "content": "Xin chào?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
USER, CHATTER, VIEWER = "sk-acme-user", "sk-acme-chatter", "sk-acme-viewer"
CHAT, EMBED, FEEDBACK = "/v1/chat/completions", "/v1/embeddings", "/v1/feedback"
REQUEST = "req-" + "0" * 32


@dataclass(frozen=True)
class Wrong:
    """A wrong request and its error."""

    name: str
    body: object
    says: str
    """Part of the message."""
    param: str | None = None
    status: int = 400
    code: str = "invalid_argument"
    path: str = CHAT
    key: str | None = USER
    headers: dict[str, str] = field(default_factory=dict)


def _chat(**fields: object) -> dict[str, object]:
    return {"model": "chat", "messages": [QUESTION]} | fields


def _messages(*messages: object) -> dict[str, object]:
    return {"model": "chat", "messages": list(messages)}


def _raw(text: str) -> bytes:
    return text.encode()


def _infinite(body: object) -> bytes:
    """The body with a number in place of 9.75 that is valid JSON and beyond the range of floats."""
    return json.dumps(body).replace("9.75", "1e999").encode()


def _nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


BODIES = [
    Wrong("an empty body", b"", "one JSON object"),
    Wrong("no JSON", b"hello", "line 1, column 1"),
    Wrong("JSON cut short", b'{"model": "chat"', "line 1"),
    Wrong("two JSON values", b"{} {}", "one JSON object"),
    Wrong("an array", b"[]", "one JSON object"),
    Wrong("a text", b'"chat"', "one JSON object"),
    Wrong("no UTF-8", b'{"model": "\xff"}', "byte 11"),
    Wrong("UTF-16", '{"model": "chat"}'.encode("utf-16"), "UTF-8"),
    Wrong("NaN", _raw('{"temperature": NaN}'), "finite"),
    Wrong("Infinity", _raw('{"temperature": -Infinity}'), "finite"),
    Wrong("a number of 5000 digits", _raw('{"seed": ' + "9" * 5000 + "}"), "sensible size"),
    Wrong("a number beyond floats", _infinite(_chat(temperature=9.75)), "less", "temperature"),
    Wrong("a field twice", _raw('{"model": "chat", "model": "rag"}'), "twice", "model"),
    Wrong("a field twice deep inside", _raw('{"messages": [{"role": "user", "role": "system"}]}'), "twice", "role"),
    Wrong(
        "too deep nesting",
        _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": _nested(40)}}]),
        "32 levels",
        "tools[0].function.parameters" + ".a" * 28,
    ),
    Wrong("nesting that would exhaust the stack", b"[" * 100_000, "32 levels"),
    Wrong(
        "more values than any request needs",
        _chat(metadata=dict.fromkeys(map(str, range(100_001)), 0)),
        "100000 values",
    ),
    Wrong(
        "half of a surrogate pair",
        _raw('{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}'),
        "surrogate",
        "messages[0].content",
    ),
    Wrong(
        "NUL in a text",
        _raw('{"model": "chat", "messages": [{"role": "user", "content": "a\\u0000"}]}'),
        "U+0000",
        "messages[0].content",
    ),
    Wrong("half of a surrogate pair in a name", _raw('{"\\udc00": 1}'), "surrogate", "body"),
    Wrong(
        "a form instead of JSON",
        b"model=chat",
        "application/json",
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    Wrong("a compressed body", b"\x1f\x8b", "must not be compressed", headers={"content-encoding": "gzip"}),
]

FIELDS = [
    Wrong("no model", {"messages": [QUESTION]}, "required", "model"),
    Wrong("an empty model", _chat(model=""), "at least 1", "model"),
    Wrong("a model that is no text", _chat(model=7), "valid string", "model"),
    Wrong("no messages", {"model": "chat"}, "required", "messages"),
    Wrong("messages that are no array", _chat(messages="hi"), "valid list", "messages"),
    Wrong("empty messages", _chat(messages=[]), "at least 1", "messages"),
    Wrong("too hot", _chat(temperature=2.5), "less than or equal to 2", "temperature"),
    Wrong("too cold", _chat(temperature=-1), "greater than or equal to 0", "temperature"),
    Wrong("a temperature in quotes", _chat(temperature="1"), "valid number", "temperature"),
    Wrong("a temperature that is a truth value", _chat(temperature=True), "valid number", "temperature"),
    Wrong("top_p of zero", _chat(top_p=0), "greater than 0", "top_p"),
    Wrong("top_p above one", _chat(top_p=1.5), "less than or equal to 1", "top_p"),
    Wrong("top_k of zero", _chat(top_k=0), "greater than or equal to 1", "top_k"),
    Wrong("min_p above one", _chat(min_p=1.5), "less than or equal to 1", "min_p"),
    Wrong("a repetition penalty of zero", _chat(repetition_penalty=0), "greater than 0", "repetition_penalty"),
    Wrong(
        "a template's messages",
        _chat(chat_template_kwargs={"messages": "x"}),
        "set by the platform",
        "chat_template_kwargs.messages",
    ),
    Wrong(
        "a template variable that is a list",
        _chat(chat_template_kwargs={"a": []}),
        "a number or a text",
        "chat_template_kwargs.a",
    ),
    Wrong("no answer wanted", _chat(n=0), "greater than or equal to 1", "n"),
    Wrong("too many answers wanted", _chat(n=17), "less than or equal to 16", "n"),
    Wrong("half an answer wanted", _chat(n=1.5), "valid integer", "n"),
    Wrong("no tokens wanted", _chat(max_tokens=0), "greater than or equal to 1", "max_tokens"),
    Wrong(
        "negative tokens wanted", _chat(max_completion_tokens=-5), "greater than or equal to 1", "max_completion_tokens"
    ),
    Wrong(
        "two different bounds of tokens",
        _chat(max_tokens=5, max_completion_tokens=6),
        "send one of them",
        "max_completion_tokens",
    ),
    Wrong("five stops", _chat(stop=["a"] * 5), "at most 4", "stop"),
    Wrong("an empty stop", _chat(stop=["a", ""]), "at least 1", "stop[1]"),
    Wrong("a stop that is a number", _chat(stop=5), "a string or an array", "stop"),
    Wrong("a seed beyond 64 bits", _chat(seed=2**63), "less than or equal to", "seed"),
    Wrong("a presence penalty out of range", _chat(presence_penalty=3), "less than or equal to 2", "presence_penalty"),
    Wrong(
        "a frequency penalty out of range",
        _chat(frequency_penalty=-3),
        "greater than or equal to -2",
        "frequency_penalty",
    ),
    Wrong("top_logprobs alone", _chat(top_logprobs=2), "needs 'logprobs' to be true", "top_logprobs"),
    Wrong("too many top_logprobs", _chat(logprobs=True, top_logprobs=21), "less than or equal to 20", "top_logprobs"),
    Wrong("a stream that is a text", _chat(stream="yes"), "valid boolean", "stream"),
    Wrong(
        "stream options without a stream",
        _chat(stream_options={"include_usage": True}),
        "'stream': true",
        "stream_options",
    ),
    Wrong("a conversation id with a slash", _chat(conversation_id="a/b"), "pattern", "conversation_id"),
    Wrong("a conversation id with a line feed at its end", _chat(conversation_id="a\n"), "pattern", "conversation_id"),
    Wrong("a user of 300 characters", _chat(user="u" * 300), "at most 256", "user"),
    Wrong("functions instead of tools", _chat(functions=[{"name": "f"}]), "send 'tools'", "functions"),
    Wrong("logit_bias", _chat(logit_bias={"1": 1}), "not supported", "logit_bias"),
    Wrong("evaluation", _chat(evaluation={"adapter": "a"}), "use the gRPC API", "evaluation"),
    Wrong("sound wanted", _chat(modalities=["text", "audio"]), "'text'", "modalities[1]"),
    Wrong("stop tokens", _chat(stop_token_ids=[1]), "not supported", "stop_token_ids"),
    Wrong("vLLM's old names", _chat(guided_regex="a"), "send 'structured_outputs'", "guided_regex"),
    Wrong(
        "a response format of no known type",
        _chat(response_format={"type": "xml"}),
        "'json_object'",
        "response_format.type",
    ),
    Wrong(
        "a json_schema format without a schema",
        _chat(response_format={"type": "json_schema"}),
        "required with the type",
        "response_format.json_schema",
    ),
    Wrong(
        "a schema that is a text",
        _chat(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": "x"}}),
        "valid dictionary",
        "response_format.json_schema.schema",
    ),
    Wrong(
        "a schema with a number beyond floats",
        _infinite(
            _chat(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"maximum": 9.75}}})
        ),
        "finite",
        "response_format.json_schema.schema.maximum",
    ),
    Wrong(
        "two structured outputs",
        _chat(structured_outputs={"regex": "a", "choice": ["a"]}),
        "exactly one",
        "structured_outputs",
    ),
    Wrong(
        "two forms of the output",
        _chat(structured_outputs={"regex": "a"}, response_format={"type": "json_object"}),
        "send one of them",
        "structured_outputs",
    ),
]

MESSAGES = [
    Wrong("a message that is a text", _messages("hi"), "valid dictionary", "messages[0]"),
    Wrong("no role", _messages({"content": "hi"}), "required", "messages[0].role"),
    Wrong(
        "an unknown role",
        _messages({"role": "boss", "content": "hi"}),
        "'system', 'developer', 'user', 'assistant' or 'tool'",
        "messages[0].role",
    ),
    Wrong("no content", _messages({"role": "user"}), "must not be empty", "messages[0].content"),
    Wrong(
        "empty content",
        _messages(QUESTION, {"role": "user", "content": "  "}),
        "must not be empty",
        "messages[1].content",
    ),
    Wrong(
        "content that is a number",
        _messages({"role": "user", "content": 5}),
        "a string or an array",
        "messages[0].content",
    ),
    Wrong(
        "an image of no model that sees",
        _messages({"role": "user", "content": [{"type": "text", "text": "What?"}, part()]}),
        "'chat' accepts no images; no model of this key does",
        "messages[0].content[1].image_url",
    ),
    Wrong(
        "an image's address",
        _messages({"role": "user", "content": [part(url="https://example.com/a.png")]}),
        "fetches no addresses for a client; send the image itself, as a URL 'data:image/png;base64,…'",
        "messages[0].content[0].image_url.url",
    ),
    Wrong(
        "an image that is a number",
        _messages({"role": "user", "content": [part(url=5)]}),
        "a valid string",
        "messages[0].content[0].image_url.url",
    ),
    Wrong(
        "an image that is another file",
        _messages({"role": "user", "content": [part(), part(b"%PDF-1.7")]}),
        "its bytes are none of image/png",
        "messages[0].content[1].image_url.url",
    ),
    Wrong(
        "an image of the assistant's",
        _messages(QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "a"}, part()]}, QUESTION),
        "only in a user's message",
        "messages[1].content[1].image_url",
    ),
    Wrong(
        "an image's detail that is none",
        _messages({"role": "user", "content": [part(detail="best")]}),
        "'auto', 'low' or 'high'",
        "messages[0].content[0].image_url.detail",
    ),
    Wrong(
        "an image in a stored conversation",
        _messages({"role": "user", "content": [part()]}) | {"conversation_id": "c"},
        "keeps no images",
        "conversation_id",
    ),
    Wrong(
        "sound",
        _messages(
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}]}
        ),
        "no audio and no files",
        "messages[0].content[1]",
    ),
    Wrong(
        "a part without text",
        _messages({"role": "user", "content": [{"type": "text"}]}),
        "required",
        "messages[0].content[0].text",
    ),
    Wrong(
        "an assistant's message without anything",
        _messages(QUESTION, {"role": "assistant"}, QUESTION),
        "tool_calls",
        "messages[1].content",
    ),
    Wrong(
        "an assistant's message at the end",
        _messages(QUESTION, {"role": "assistant", "content": "hi"}),
        "last message",
        "messages[1].role",
    ),
    Wrong(
        "a system message at the end",
        _messages(QUESTION, {"role": "system", "content": "hi"}),
        "last message",
        "messages[1].role",
    ),
    Wrong("a name with a space", _messages(QUESTION | {"name": "a b"}), "pattern", "messages[0].name"),
    Wrong(
        "a tool's result for nothing",
        _messages({"role": "tool", "tool_call_id": "c1", "content": "42"}),
        "must name one",
        "messages[0].tool_call_id",
    ),
    Wrong(
        "a tool's result without a call id",
        _messages(QUESTION, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "42"}),
        "must name one",
        "messages[2].tool_call_id",
    ),
    Wrong(
        "a call that is not answered",
        _messages(QUESTION, {"role": "assistant", "tool_calls": [CALL]}, QUESTION),
        "answered by a tool message",
        "messages[2]",
    ),
    Wrong(
        "a call that is not answered at the end",
        _messages(QUESTION, {"role": "assistant", "tool_calls": [CALL]}),
        "answered by a tool message",
        "messages",
    ),
    Wrong(
        "two calls with one id",
        _messages(QUESTION, {"role": "assistant", "tool_calls": [CALL, CALL]}, QUESTION),
        "no other call",
        "messages[1].tool_calls[1].id",
    ),
    Wrong(
        "a call whose arguments are an object",
        _messages(QUESTION, {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}),
        "valid string",
        "messages[1].tool_calls[0].function.arguments",
    ),
    Wrong(
        "a user's message with tool calls",
        _messages(QUESTION | {"tool_calls": [CALL]}),
        "only in an assistant's",
        "messages[0].tool_calls",
    ),
    Wrong(
        "a user's message that answers a call",
        _messages(QUESTION | {"tool_call_id": "c1"}),
        "only in a tool's",
        "messages[0].tool_call_id",
    ),
    Wrong("a tool without a function", _chat(tools=[{"type": "function"}]), "required", "tools[0].function"),
    Wrong("a custom tool", _chat(tools=[{"type": "custom", "custom": {"name": "f"}}]), "'function'", "tools[0].type"),
    Wrong(
        "a tool's name with a dot",
        _chat(tools=[{"type": "function", "function": {"name": "a.b"}}]),
        "pattern",
        "tools[0].function.name",
    ),
    Wrong("two tools of one name", _chat(tools=[TOOL, TOOL]), "name of an earlier tool", "tools[1].function.name"),
    Wrong("a choice without tools", _chat(tool_choice="required"), "'tools' is empty", "tool_choice"),
    Wrong(
        "a choice of no tool",
        _chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
        "one of 'tools'",
        "tool_choice",
    ),
    Wrong("a choice that is a list", _chat(tools=[TOOL], tool_choice=["f"]), "a string or an object", "tool_choice"),
    Wrong("an unknown choice", _chat(tools=[TOOL], tool_choice="any"), "'required'", "tool_choice"),
]

KEYS_AND_NAMES = [
    Wrong("no key", _chat(), "Authorization: Bearer", status=401, code="unauthenticated", key=None),
    Wrong("a wrong key", _chat(), "not known", status=401, code="unauthenticated", key="sk-wrong"),
    Wrong(
        "another scheme",
        _chat(),
        "Bearer <key>",
        status=401,
        code="unauthenticated",
        key=None,
        headers={"authorization": "Basic dTpw"},
    ),
    Wrong(
        "an empty key",
        _chat(),
        "Bearer <key>",
        status=401,
        code="unauthenticated",
        key=None,
        headers={"authorization": "Bearer"},
    ),
    Wrong("a key of a megabyte's beginning", _chat(), "not known", status=401, code="unauthenticated", key="k" * 5000),
    Wrong(
        "a wrong key is reported before a wrong body",
        b"hello",
        "not known",
        status=401,
        code="unauthenticated",
        key="sk-wrong",
    ),
    Wrong(
        "a role that may not chat", _chat(), "no permission 'chat'", status=403, code="permission_denied", key=VIEWER
    ),
    Wrong(
        "a role that may not name the route",
        _chat(model="rag"),
        "may not use the model 'rag'",
        "model",
        status=403,
        code="permission_denied",
        key=CHATTER,
    ),
    Wrong("an unknown model", _chat(model="gpt-9"), "no model", "model", status=404, code="model_not_found"),
    Wrong(
        "another tenant's route",
        _chat(model="secret-plan"),
        "no model",
        "model",
        status=404,
        code="model_not_found",
    ),
    Wrong("an embedding model for a chat", _chat(model="minilm"), "embedding model", "model"),
    Wrong("a chat model for embeddings", {"model": "chat", "input": "a"}, "answers chats", "model", path=EMBED),
    Wrong(
        "a role that may not embed with it",
        {"model": "minilm", "input": "a"},
        "may not use",
        "model",
        status=403,
        code="permission_denied",
        path=EMBED,
        key=CHATTER,
    ),
    Wrong(
        "an unknown embedding model",
        {"model": "bert", "input": "a"},
        "no model",
        "model",
        status=404,
        code="model_not_found",
        path=EMBED,
    ),
    Wrong("nothing to embed", {"model": "minilm"}, "required", "input", path=EMBED),
    Wrong("no texts to embed", {"model": "minilm", "input": []}, "at least one", "input", path=EMBED),
    Wrong(
        "an empty text to embed", {"model": "minilm", "input": ["a", ""]}, "must not be empty", "input[1]", path=EMBED
    ),
    Wrong("too many texts to embed", {"model": "minilm", "input": ["a"] * 2049}, "at most 2048", "input", path=EMBED),
    Wrong(
        "an unknown encoding",
        {"model": "minilm", "input": "a", "encoding_format": "hex"},
        "'float' or 'base64'",
        "encoding_format",
        path=EMBED,
    ),
    Wrong(
        "other dimensions", {"model": "minilm", "input": "a", "dimensions": 8}, "3 dimensions", "dimensions", path=EMBED
    ),
    Wrong("feedback on nothing", {"rating": "up"}, "required", "request_id", path=FEEDBACK),
    Wrong("feedback on something else", {"request_id": "x", "rating": "up"}, "pattern", "request_id", path=FEEDBACK),
    Wrong("feedback without content", {"request_id": REQUEST}, "must contain a rating", "rating", path=FEEDBACK),
    Wrong("an unknown rating", {"request_id": REQUEST, "rating": 5}, "'up' or 'down'", "rating", path=FEEDBACK),
    Wrong(
        "an endless comment",
        {"request_id": REQUEST, "comment": "a" * (bounds.MAX_COMMENT_CHARACTERS + 1)},
        "at most 10000",
        "comment",
        path=FEEDBACK,
    ),
    Wrong(
        "a role that may not judge",
        {"request_id": REQUEST, "rating": "up"},
        "no permission 'feedback'",
        status=403,
        code="permission_denied",
        path=FEEDBACK,
        key=CHATTER,
    ),
    Wrong("the wrong method", _chat(), "supports GET only", status=405, path="/v1/models"),
    Wrong("a body that is too large", _chat(user="u" * (5 << 20)), "4194304 bytes", status=413, code="too_large"),
]


@pytest.mark.parametrize("wrong", [*BODIES, *FIELDS, *MESSAGES, *KEYS_AND_NAMES], ids=lambda wrong: wrong.name)
async def test_a_wrong_request_is_refused_with_its_clear_error(lasting_gateway: Gateway, wrong: Wrong) -> None:
    response = await lasting_gateway.post(wrong.path, wrong.body, key=wrong.key, headers=wrong.headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (wrong.status, wrong.code, wrong.param), error
    assert wrong.says in error["message"]
    assert len(error["message"]) < 400
    assert response.headers["x-request-id"].startswith("req-")
    assert response.headers["content-type"] == "application/json"
    assert (response.status_code == 401) == ("www-authenticate" in response.headers)
    assert lasting_gateway.orchestrator.requests == []


async def test_no_error_repeats_the_clients_content(lasting_gateway: Gateway) -> None:
    for body in (
        _chat(temperature="my secret"),
        _messages({"role": "my secret", "content": "my secret"}),
        _chat(tool_choice="my secret"),
        _chat(conversation_id="my secret"),
    ):
        response = await lasting_gateway.post(CHAT, body)
        assert response.status_code == 400
        assert "my secret" not in response.text


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_time=yesterday", "start_time"),
        ("until=now", "until"),
        ("start_time=2026-01-02T00:00:00Z&end_time=2026-01-01T00:00:00Z", "end_time"),
        ("start_time=2026-01-01T00:00:00Z&end_time=2026-01-01T00:00:00Z", "end_time"),
    ],
)
async def test_usage_of_a_wrong_period_is_refused(lasting_gateway: Gateway, query: str, param: str) -> None:
    response = await lasting_gateway.get(f"/v1/usage?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
