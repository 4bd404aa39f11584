"""The contract of a conversation: the order of messages, bounds, and the estimate of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import conversation
from genaifactory_common.errors import FactoryError, InvalidArgument, TooLarge

USER, ASSISTANT, TOOL = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_TOOL
CALL = types_pb2.ToolCall(id="c1", name="f", arguments_json='{"city": "Huế"}')


def message(role: types_pb2.Role.ValueType = USER, content: str = "hi", **fields: Any) -> types_pb2.Message:
    return types_pb2.Message(role=role, content=content, **fields)


RESULT = message(TOOL, "42", tool_call_id="c1")


@pytest.mark.parametrize("request_type", [gateway_pb2.ChatRequest, orchestrator_pb2.AnswerRequest])
@pytest.mark.parametrize(
    ("fields", "field", "kind"),
    [
        ({"messages": [message()] * conversation.MAX_MESSAGES}, None, None),
        ({"messages": [message()] * (conversation.MAX_MESSAGES + 1)}, "messages", InvalidArgument),
        ({"messages": [message(content="x" * 2_000_001)] * 2}, "messages", TooLarge),
        ({"messages": [message(content="a\0")]}, "messages[0].content", InvalidArgument),
        ({"messages": [message()], "conversation_id": "a\n"}, "conversation_id", InvalidArgument),
        ({"messages": [message()], "sampling": types_pb2.Sampling(top_k=2_000_000)}, "sampling.top_k", InvalidArgument),
        ({"messages": [message(), message(ASSISTANT, "", tool_calls=[CALL]), RESULT]}, None, None),
        ({"messages": [message(), message(ASSISTANT, "", tool_calls=[CALL])]}, "messages", InvalidArgument),
        ({"messages": [RESULT]}, "messages[0].tool_call_id", InvalidArgument),
        ({"messages": [RESULT], "conversation_id": "kept"}, None, None),
        (
            {"messages": [message(), RESULT], "conversation_id": "kept"},
            "messages[1].tool_call_id",
            InvalidArgument,
        ),
        (
            {"messages": [message(TOOL, "42")], "conversation_id": "kept"},
            "messages[0].tool_call_id",
            InvalidArgument,
        ),
        (
            {"messages": [message()], "tools": [types_pb2.Tool(name="f")], "tool_choice": {"mode": 1, "name": "f"}},
            "tool_choice",
            InvalidArgument,
        ),
    ],
)
def test_gateway_and_orchestrator_accept_and_refuse_the_same(
    request_type: type[gateway_pb2.ChatRequest | orchestrator_pb2.AnswerRequest],
    fields: dict[str, Any],
    field: str | None,
    kind: type[FactoryError] | None,
) -> None:
    request = request_type(**fields)
    if kind is None:
        conversation.check(request)
        return
    with pytest.raises(kind) as caught:
        conversation.check(request)
    assert caught.value.field == field


def test_the_estimate_counts_all_that_a_model_reads() -> None:
    plain = [message(content="x" * 400)]
    alone = conversation.estimated_prompt_tokens(plain)
    assert alone == 104
    tool = types_pb2.Tool(name="f", description="d" * 400)
    tool.parameters.update({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(50)}})
    assert conversation.estimated_prompt_tokens(plain, [tool]) > alone + 100 + 50 * 4
    called = [
        *plain,
        message(ASSISTANT, "", tool_calls=[types_pb2.ToolCall(id="c", name="f", arguments_json="x" * 4000)]),
    ]
    assert conversation.estimated_prompt_tokens(called) > alone + 1000
    form = types_pb2.OutputFormat(regex="[a-z]{1,9}" * 100)
    assert conversation.estimated_prompt_tokens(plain, (), form) > alone + 240
