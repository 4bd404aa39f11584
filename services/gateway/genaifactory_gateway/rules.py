"""What both doors ask of a request beyond its form: the rules of a conversation and of tools."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, sampling
from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway.jsonbody import check_text

MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_TEXTS = 2048
MAX_TOOLS = 128
MAX_NAME_CHARACTERS = 128
MAX_USER_CHARACTERS = 256
MAX_CORRECTION_CHARACTERS = 100_000
MAX_COMMENT_CHARACTERS = 10_000
CONVERSATION_ID = r"^[A-Za-z0-9._-]{1,128}$"
TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"
REQUEST_ID = r"^(req|chatcmpl)-[0-9a-f]{32}$"


def check_messages(messages: Iterable[types_pb2.Message]) -> None:
    """Raises InvalidArgument unless the conversation can be answered."""
    pending: dict[str, None] = {}  # calls that wait for their results, in order
    index, last = -1, types_pb2.ROLE_UNSPECIFIED
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        last = message.role
        if last == types_pb2.ROLE_TOOL:
            _take_result(message, field, pending)
        elif pending:
            raise _calls_without_results(field, pending)
        elif last == types_pb2.ROLE_ASSISTANT:
            _take_calls(message, field, pending)
        elif last not in (types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER):
            raise InvalidArgument(f"'{field}.role' must be system, user, assistant or tool.", field=f"{field}.role")
        elif not message.content.strip() and not message.images:
            raise _empty(field, "")
        _check_belongings(message, field)
    if index < 0:
        raise InvalidArgument("'messages' must hold at least one message.", field="messages")
    if pending:
        raise _calls_without_results("messages", pending)
    if last not in (types_pb2.ROLE_USER, types_pb2.ROLE_TOOL):
        raise InvalidArgument(
            "The last message must be the user's question or the result of a tool.", field=f"messages[{index}].role"
        )


def check_tools(tools: Iterable[types_pb2.Tool], choice: types_pb2.ToolChoice) -> None:
    """Raises InvalidArgument unless tools have names of their own and the choice names one of them."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if not re.fullmatch(TOOL_NAME, tool.name):
            raise InvalidArgument(
                f"The name of 'tools[{index}]' must be 1 to 64 letters, digits, '_' or '-'.", field=f"tools[{index}]"
            )
        if tool.name in names:
            raise InvalidArgument(f"'tools[{index}]' has the name of an earlier tool.", field=f"tools[{index}]")
        names.add(tool.name)
    mode = choice.mode
    if mode in (types_pb2.ToolChoice.MODE_REQUIRED, types_pb2.ToolChoice.MODE_NAMED) and not names:
        raise InvalidArgument("'tool_choice' asks for a tool, but 'tools' is empty.", field="tool_choice")
    if mode == types_pb2.ToolChoice.MODE_NAMED and choice.name not in names:
        raise InvalidArgument("'tool_choice' must name one of 'tools'.", field="tool_choice")


def check_chat(request: gateway_pb2.ChatRequest) -> None:
    """The whole check of a gRPC request, whose form protobuf bounds only in part. Raises InvalidArgument."""
    _at_most("messages", len(request.messages), MAX_MESSAGES)
    _at_most("tools", len(request.tools), MAX_TOOLS)
    _at_most("user", len(request.user), MAX_USER_CHARACTERS, "characters")
    if request.conversation_id and not re.fullmatch(CONVERSATION_ID, request.conversation_id):
        raise InvalidArgument("'conversation_id' must be 1 to 128 of A-Z a-z 0-9 . _ -.", field="conversation_id")
    for index, message in enumerate(request.messages):
        check_text(message.content, f"messages[{index}].content")
    check_messages(request.messages)
    images.check(request.messages, request.conversation_id)
    check_tools(request.tools, request.tool_choice)
    sampling.check(request.sampling)


def check_texts(texts: Iterable[str], field: str) -> None:
    """Raises InvalidArgument unless there are 1 to MAX_TEXTS texts and none is empty."""
    index = -1
    for index, text in enumerate(texts):
        if not text.strip():
            raise InvalidArgument(f"'{field}[{index}]' must not be empty.", field=f"{field}[{index}]")
        check_text(text, f"{field}[{index}]")
    if index < 0:
        raise InvalidArgument(f"'{field}' must hold at least one text.", field=field)
    _at_most(field, index + 1, MAX_TEXTS)


def estimated_tokens(texts: Iterable[str]) -> int:
    """About how many tokens texts take: a quarter of their UTF-8 bytes, and 4 for what frames each.

    English has about 4 bytes a token; Vietnamese about as many, with more bytes and more tokens to the syllable.
    """
    return sum(4 + math.ceil(len(text.encode()) / 4) for text in texts)


def _take_calls(message: types_pb2.Message, field: str, pending: dict[str, None]) -> None:
    for position, call in enumerate(message.tool_calls):
        if not call.id or call.id in pending:
            path = f"{field}.tool_calls[{position}].id"
            raise InvalidArgument(f"'{path}' must be a text that no other call has.", field=path)
        pending[call.id] = None
    if not message.content and not message.tool_calls:
        raise _empty(field, "; an assistant's message needs it unless it has tool_calls")


def _take_result(message: types_pb2.Message, field: str, pending: dict[str, None]) -> None:
    if message.tool_call_id not in pending:
        path = f"{field}.tool_call_id"
        raise InvalidArgument(
            f"'{path}' must name one of the tool_calls of the assistant's message before it, once.", field=path
        )
    del pending[message.tool_call_id]


def _check_belongings(message: types_pb2.Message, field: str) -> None:
    if message.tool_calls and message.role != types_pb2.ROLE_ASSISTANT:
        path = f"{field}.tool_calls"
        raise InvalidArgument(f"'{path}' may stand only in an assistant's message.", field=path)
    if message.tool_call_id and message.role != types_pb2.ROLE_TOOL:
        path = f"{field}.tool_call_id"
        raise InvalidArgument(f"'{path}' may stand only in a tool's message.", field=path)


def _at_most(field: str, count: int, most: int, unit: str = "items") -> None:
    if count > most:
        raise InvalidArgument(f"'{field}' may hold at most {most} {unit}; it holds {count}.", field=field)


def _empty(field: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"'{field}.content' must not be empty{why}.", field=f"{field}.content")


def _calls_without_results(field: str, pending: dict[str, None]) -> InvalidArgument:
    return InvalidArgument(
        f"An assistant's tool_calls must each be answered by a tool message right after it; {len(pending)} are not.",
        field=field,
    )
