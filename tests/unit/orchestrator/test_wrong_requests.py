"""Invalid requests: the error names the field, and no model is called."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, InvalidArgument, Reason, TooLarge
from genaifactory_common.testing import CALLER, act_as
from tests.unit.orchestrator.conftest import World

USER, ASSISTANT = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT
NAN = float("nan")


def message(role: types_pb2.Role.ValueType = USER, content: str = "hi", **fields: Any) -> types_pb2.Message:
    return types_pb2.Message(role=role, content=content, **fields)


def sampling(**fields: Any) -> dict[str, types_pb2.Sampling]:
    return {"sampling": types_pb2.Sampling(**fields)}


def tools(*names: str) -> list[types_pb2.Tool]:
    return [types_pb2.Tool(name=name) for name in names]


CALL = types_pb2.ToolCall(id="c", name="f")
CHOICE = types_pb2.ToolChoice

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"request_id": ""}, "request_id"),
    ({"request_id": "a b"}, "request_id"),
    ({"request_id": "x" * 129}, "request_id"),
    ({"route": ""}, "route"),
    ({"conversation_id": "a/b"}, "conversation_id"),
    ({"conversation_id": "x" * 129}, "conversation_id"),
    ({"user": "x" * 257}, "user"),
    ({"messages": []}, "messages"),
    ({"messages": [message()] * 2049}, "messages"),
    ({"messages": [message(content="x" * 2_000_001)] * 2}, "messages"),
    ({"messages": [types_pb2.Message(content="hi")]}, "messages[0].role"),
    ({"messages": [types_pb2.Message.FromString(b"\x08\x63\x12\x02hi")]}, "messages[0].role"),
    ({"messages": [message(), message(ASSISTANT)]}, "messages[1].role"),
    ({"messages": [message(types_pb2.ROLE_SYSTEM)]}, "messages[0].role"),
    ({"messages": [message(content=" \n")]}, "messages[0].content"),
    ({"messages": [message(name="x" * 65)]}, "messages[0].name"),
    ({"messages": [message(tool_calls=[CALL])]}, "messages[0].tool_calls"),
    ({"messages": [message(tool_call_id="c")]}, "messages[0].tool_call_id"),
    ({"messages": [message(types_pb2.ROLE_TOOL)]}, "messages[0].tool_call_id"),
    (sampling(temperature=2.1), "sampling.temperature"),
    (sampling(temperature=-0.1), "sampling.temperature"),
    (sampling(temperature=NAN), "sampling.temperature"),
    (sampling(top_p=0), "sampling.top_p"),
    (sampling(top_p=1.5), "sampling.top_p"),
    (sampling(top_k=0), "sampling.top_k"),
    (sampling(max_tokens=0), "sampling.max_tokens"),
    (sampling(frequency_penalty=3), "sampling.frequency_penalty"),
    (sampling(presence_penalty=-3), "sampling.presence_penalty"),
    (sampling(min_p=1.1), "sampling.min_p"),
    (sampling(repetition_penalty=0), "sampling.repetition_penalty"),
    (sampling(chat_template_kwargs={"messages": "x"}), "sampling.chat_template_kwargs.messages"),
    (sampling(n=0), "sampling.n"),
    (sampling(n=17), "sampling.n"),
    (sampling(stop=["a"] * 5), "sampling.stop"),
    (sampling(stop=[""]), "sampling.stop[0]"),
    (sampling(logprobs=True, top_logprobs=21), "sampling.top_logprobs"),
    (sampling(top_logprobs=2), "sampling.top_logprobs"),
    ({"tools": tools("a b")}, "tools[0].name"),
    ({"tools": tools("a", "a")}, "tools[1].name"),
    ({"tools": tools(*(f"t{i}" for i in range(129)))}, "tools"),
    ({"tools": tools("a"), "tool_choice": CHOICE(mode=CHOICE.MODE_NAMED, name="b")}, "tool_choice"),
    ({"tool_choice": CHOICE(mode=CHOICE.MODE_REQUIRED)}, "tool_choice"),
]


def assert_names(error: FactoryError, field: str) -> None:
    """The message is complete without the field."""
    assert re.split(r"[.\[]", field.removeprefix("sampling."))[0] in error.message
    assert not re.match(r"(Must|Needs|Only|It)\b", error.message)


@pytest.mark.parametrize(("fields", "field"), WRONG, ids=[f"{i}-{field}" for i, (_, field) in enumerate(WRONG)])
async def test_a_wrong_request_is_refused_with_its_field(world: World, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await world.ask(**fields)
    assert caught.value.field == field
    assert_names(caught.value, field)
    assert not world.modelserver.requests
    assert not world.safety.checked


@pytest.mark.parametrize(
    ("request_id", "texts", "field"),
    [("", ["a"], "request_id"), ("r", [], "texts"), ("r", ["a"] * 2049, "texts"), ("r", ["a", " "], "texts[1]")],
)
async def test_wrong_texts_to_embed_are_refused_with_their_field(
    world: World, request_id: str, texts: list[str], field: str
) -> None:
    request = orchestrator_pb2.EmbedRequest(request_id=request_id, model="minilm", texts=texts)
    with pytest.raises(InvalidArgument) as caught:
        await channels.unary(world.stub.Embed, request, timeout_seconds=5)
    assert caught.value.field == field
    assert_names(caught.value, field)


@pytest.mark.parametrize("model", ["", "nothing", "small", "rag"])
async def test_only_an_embedding_model_embeds(world: World, model: str) -> None:
    request = orchestrator_pb2.EmbedRequest(request_id="r", model=model, texts=["a"])
    with pytest.raises(FactoryError) as caught:
        await channels.unary(world.stub.Embed, request, timeout_seconds=5)
    assert (caught.value.reason, caught.value.field) == (Reason.MODEL_NOT_FOUND, "model")


async def test_a_malformed_conversation_id_is_refused(world: World) -> None:
    request = orchestrator_pb2.DeleteConversationRequest(conversation_id="../x")
    with pytest.raises(InvalidArgument) as caught:
        await channels.unary(world.stub.DeleteConversation, request, timeout_seconds=5)
    assert caught.value.field == "conversation_id"
    assert_names(caught.value, "conversation_id")


@pytest.mark.parametrize("method", ["Embed", "DeleteConversation"])
async def test_each_method_needs_its_permission(world: World, method: str) -> None:
    act_as(replace(CALLER, permissions=("models",)))
    requests = {
        "Embed": orchestrator_pb2.EmbedRequest(request_id="r", model="minilm", texts=["a"]),
        "DeleteConversation": orchestrator_pb2.DeleteConversationRequest(conversation_id="c"),
    }
    with pytest.raises(FactoryError) as caught:
        await channels.unary(getattr(world.stub, method), requests[method], timeout_seconds=5)
    assert caught.value.reason == Reason.PERMISSION_DENIED


async def test_the_error_of_a_text_that_is_too_long_for_the_policy_names_the_message(world: World) -> None:
    world.safety.error = TooLarge("Must have at most 10 characters.", field="text")
    with pytest.raises(FactoryError) as caught:
        await world.ask(messages=[message(), message(ASSISTANT), message(content="long")], route="chat")
    assert caught.value.reason == Reason.TOO_LARGE
    assert str(caught.value.field).startswith("messages[")
