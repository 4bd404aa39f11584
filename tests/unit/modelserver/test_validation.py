"""Wrong requests, each refused with the path of its bad field by the served model server."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.channels import stream, unary
from genaifactory_common.conversation import MAX_PROMPT_MESSAGES
from genaifactory_common.errors import FactoryError, InvalidArgument, Reason
from genaifactory_modelserver import validation
from genaifactory_modelserver.engines.fake import FakeEngine
from genaifactory_modelserver.engines.protocol import OutputFormat, Priority, Role, ToolChoice
from tests.unit.modelserver.conftest import Serve

USER = {"role": "ROLE_USER", "content": "hi"}
BEGUN = {"role": "ROLE_ASSISTANT", "content": "Well"}
GOOD: dict[str, Any] = {"model": "fake", "conversation": {"messages": [USER]}}
CALL = {"id": "c1", "name": "f", "arguments_json": "{}"}


def messages(*given: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"conversation": {"messages": list(given), **rest}}


def tools(*given: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"tools": list(given), **rest}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no model", {"model": ""}, "model"),
    ("unknown model", {"model": "gpt-9"}, "model"),
    ("no input", {"conversation": None}, "messages"),
    ("no messages", {"conversation": {}}, "messages"),
    ("too many messages", messages(*[USER] * (MAX_PROMPT_MESSAGES + 1)), "messages"),
    ("empty prompt", {"conversation": None, "prompt": ""}, "prompt"),
    ("no role", messages({"content": "hi"}), "messages[0].role"),
    ("unknown role", messages(USER, {"role": 9, "content": "hi"}), "messages[1].role"),
    ("empty user message", messages(USER, {"role": "ROLE_USER"}), "messages[1].content"),
    ("empty system message", messages({"role": "ROLE_SYSTEM"}, USER), "messages[0].content"),
    ("assistant says nothing", messages(USER, {"role": "ROLE_ASSISTANT"}, USER), "messages[1].content"),
    ("user calls a tool", messages({**USER, "tool_calls": [CALL]}), "messages[0].tool_calls"),
    ("user answers a call", messages({**USER, "tool_call_id": "c1"}), "messages[0].tool_call_id"),
    ("tool answers no call", messages(USER, {"role": "ROLE_TOOL", "content": "1"}), "messages[1].tool_call_id"),
    (
        "call without a name",
        messages(USER, {"role": "ROLE_ASSISTANT", "tool_calls": [CALL, {"id": "c2"}]}),
        "messages[1].tool_calls[1]",
    ),
    ("an image", messages(USER, {**USER, "images": [{"media_type": "image/png"}]}), "messages[1].images[0]"),
    ("continue a user's message", messages(USER, continue_final_message=True), "messages[0].role"),
    (
        "continue tool calls",
        messages(USER, {**BEGUN, "tool_calls": [CALL]}, continue_final_message=True),
        "messages[1].tool_calls",
    ),
    ("too many documents", {"documents": [{"text": "x"}] * (validation.MAX_DOCUMENTS + 1)}, "documents"),
    ("temperature too high", {"sampling": {"temperature": 2.1}}, "sampling.temperature"),
    ("temperature negative", {"sampling": {"temperature": -0.1}}, "sampling.temperature"),
    ("temperature not a number", {"sampling": {"temperature": "NaN"}}, "sampling.temperature"),
    ("top_p zero", {"sampling": {"top_p": 0}}, "sampling.top_p"),
    ("top_p above one", {"sampling": {"top_p": 1.01}}, "sampling.top_p"),
    ("top_p not a number", {"sampling": {"top_p": "NaN"}}, "sampling.top_p"),
    ("top_k zero", {"sampling": {"top_k": 0}}, "sampling.top_k"),
    ("max_tokens zero", {"sampling": {"max_tokens": 0}}, "sampling.max_tokens"),
    ("five stop texts", {"sampling": {"stop": list("abcde")}}, "sampling.stop"),
    ("empty stop text", {"sampling": {"stop": ["a", ""]}}, "sampling.stop[1]"),
    ("endless stop text", {"sampling": {"stop": ["a" * 1001]}}, "sampling.stop[0]"),
    ("frequency_penalty too low", {"sampling": {"frequency_penalty": -2.5}}, "sampling.frequency_penalty"),
    ("presence_penalty too high", {"sampling": {"presence_penalty": "Infinity"}}, "sampling.presence_penalty"),
    ("n zero", {"sampling": {"n": 0}}, "sampling.n"),
    ("n too many", {"sampling": {"n": 17}}, "sampling.n"),
    ("top_logprobs too many", {"sampling": {"logprobs": True, "top_logprobs": 21}}, "sampling.top_logprobs"),
    ("top_logprobs alone", {"sampling": {"top_logprobs": 2}}, "sampling.top_logprobs"),
    ("too many tools", tools(*[{"name": f"t{i}"} for i in range(129)]), "tools"),
    ("tool without a name", tools({"name": "f"}, {}), "tools[1].name"),
    ("tool with a blank in its name", tools({"name": "get weather"}), "tools[0].name"),
    ("tool twice", tools({"name": "f"}, {"name": "f"}), "tools[1].name"),
    ("parameters are no object", tools({"name": "f", "parameters": {"type": "array"}}), "tools[0].parameters"),
    ("choice without tools", {"tool_choice": {"mode": "MODE_REQUIRED"}}, "tool_choice"),
    ("unknown choice", {"tool_choice": {"mode": 8}}, "tool_choice"),
    ("name with mode auto", {"tool_choice": {"mode": "MODE_AUTO", "name": "f"}}, "tool_choice"),
    (
        "choice of an unknown tool",
        tools({"name": "f"}, tool_choice={"mode": "MODE_NAMED", "name": "g"}),
        "tool_choice",
    ),
    ("json_object false", {"output_format": {"json_object": False}}, "output_format.json_object"),
    ("empty pattern", {"output_format": {"regex": ""}}, "output_format.regex"),
    ("endless grammar", {"output_format": {"grammar": "a" * 100_001}}, "output_format.grammar"),
    ("no choices", {"output_format": {"choice": {}}}, "output_format.choice.values"),
    ("an empty choice", {"output_format": {"choice": {"values": ["a", ""]}}}, "output_format.choice.values"),
    ("unknown priority", {"priority": 7}, "priority"),
]


def made(change: dict[str, Any]) -> modelserver_pb2.GenerateRequest:
    document = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    return json_format.ParseDict(document, modelserver_pb2.GenerateRequest())


async def test_every_wrong_generate_request_is_refused_with_its_field_and_reaches_no_engine(
    serve: Serve,
) -> None:
    engine = FakeEngine()
    async with serve(fake=engine) as stub:
        for what, change, field in WRONG:
            with pytest.raises(FactoryError) as raised:
                _ = [message async for message in stream(stub.Generate, made(change), timeout_seconds=5)]
            error = raised.value
            assert error.field == field, what
            expected = Reason.MODEL_NOT_FOUND if what == "unknown model" else None
            assert error.reason == expected or isinstance(error, InvalidArgument), what
            assert error.message.endswith("."), what
    assert not engine.seen


@pytest.mark.parametrize(
    ("model", "texts", "field"),
    [
        ("", ["a"], "model"),
        ("nothing", ["a"], "model"),
        ("fake", ["a"], "model"),
        ("minilm", [], "texts"),
        ("minilm", ["a"] * 2049, "texts"),
        ("minilm", ["a", ""], "texts[1]"),
        ("minilm", ["a", "b", " \n"], "texts[2]"),
        ("minilm", ["a" * 600, "b" * 600], "texts"),
    ],
)
async def test_a_wrong_embed_request_is_refused_with_its_field(
    serve: Serve, model: str, texts: list[str], field: str
) -> None:
    async with serve(max_embedding_characters=1000) as stub:
        with pytest.raises(FactoryError) as raised:
            await unary(stub.Embed, modelserver_pb2.EmbedRequest(model=model, texts=texts), timeout_seconds=5)
    # No MiniLM is served here: what is refused for its texts never comes to look for the model.
    assert raised.value.field == field


def test_a_request_is_read_as_it_was_written() -> None:
    parameters = {"type": "object", "properties": {"days": {"type": "integer", "maximum": 7, "multipleOf": 0.5}}}
    request = made(
        {
            "conversation": {"messages": [USER, BEGUN], "continue_final_message": True},
            "documents": [{"text": "Trích", "title": "T", "headings": ["A", "B"], "language": "vi", "start_offset": 5}],
            "sampling": {
                "temperature": 0,
                "top_p": 1,
                "top_k": 1,
                "max_tokens": 1,
                "seed": "-4",
                "n": 16,
                "stop": ["x"],
                "min_p": 0.5,
                "repetition_penalty": 1.5,
                "chat_template_kwargs": {"enable_thinking": False, "budget": 512, "share": 0.5, "tone": "brief"},
            },
            "tools": [{"name": "f", "parameters": parameters, "strict": True}],
            "tool_choice": {"mode": "MODE_NAMED", "name": "f"},
            "output_format": {"json_schema": parameters},
            "priority": "PRIORITY_BATCH",
        }
    )
    read = validation.generation(request, tenant="acme")
    assert [message.role for message in read.messages] == [Role.USER, Role.ASSISTANT]
    assert read.continue_final_message
    assert read.documents[0].headings == ("A", "B")
    assert read.documents[0].starts_inside
    assert (read.sampling.temperature, read.sampling.top_p, read.sampling.seed, read.sampling.n) == (0, 1, -4, 16)
    assert (read.sampling.min_p, read.sampling.repetition_penalty) == (0.5, 1.5)
    assert read.chat_template_kwargs == {"enable_thinking": False, "budget": 512, "share": 0.5, "tone": "brief"}
    assert type(read.chat_template_kwargs["budget"]) is int
    assert read.tools[0].parameters == parameters
    assert type(read.tools[0].parameters["properties"]["days"]["maximum"]) is int
    assert read.tool_choice == ToolChoice("named", "f")
    assert read.output_format == OutputFormat("json_schema", json_schema=parameters)
    assert read.priority is Priority.BATCH


def test_unset_fields_take_the_models_defaults() -> None:
    sampling = validation.generation(made({}), tenant="acme").sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed, sampling.n) == (None, None, None, 1)


def test_a_struct_that_holds_what_is_no_json_is_refused() -> None:
    request = made({"tools": [{"name": "f"}]})
    request.tools[0].parameters.CopyFrom(struct_pb2.Struct(fields={"maximum": struct_pb2.Value(number_value=math.inf)}))
    with pytest.raises(InvalidArgument) as raised:
        validation.generation(request, tenant="acme")
    assert raised.value.field == "tools[0].parameters"


def test_an_answer_may_be_begun_with_no_text_yet() -> None:
    request = modelserver_pb2.GenerateRequest(
        model="fake",
        conversation=modelserver_pb2.Conversation(
            messages=[
                types_pb2.Message(role=types_pb2.ROLE_USER, content="hi"),
                types_pb2.Message(role=types_pb2.ROLE_ASSISTANT),
            ],
            continue_final_message=True,
        ),
    )
    assert validation.generation(request, tenant="acme").messages[-1].content == ""
