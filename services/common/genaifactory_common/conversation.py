"""The contract of a conversation: bounds and checks of messages, tools and texts, for every service that reads them.

Fields in errors are those of the protobuf messages; the gateway's HTTP API renames them to those of its requests.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, sampling
from genaifactory_common.errors import InvalidArgument, TooLarge

MAX_MESSAGES = 2_048
"""In one request."""
MAX_PROMPT_MESSAGES = 10_000
"""In one prompt to a model: a request's, those of the stored conversation before them, and a route's own."""
MAX_CHARACTERS = 4_000_000
"""In the contents of all messages of a request, or in all its texts to embed."""
MAX_TEXTS = 2_048
"""Texts to embed in one call."""
MAX_CHECKED_TEXTS = 100
"""Texts to check by a guardrail policy in one call; of MAX_CHARACTERS together."""
MAX_TOOLS = 128
MAX_NAME_CHARACTERS = 64
"""In a message's name of its author."""
MAX_USER_CHARACTERS = 256
_ID_CHARACTERS = "A-Za-z0-9._-"
_ID_LENGTH = 128
CONVERSATION_ID = rf"^[{_ID_CHARACTERS}]{{1,{_ID_LENGTH}}}$"
TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"

_ROLES = (types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_TOOL)
_TOOL_NAME = re.compile(TOOL_NAME.removesuffix("$") + r"\Z")
_ID = re.compile(CONVERSATION_ID.removesuffix("$") + r"\Z")
_NOT_IN_AN_ID = re.compile(rf"[^{_ID_CHARACTERS}]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")
_FRAME_TOKENS = 4  # that a chat template adds around a message


Request = gateway_pb2.ChatRequest | orchestrator_pb2.AnswerRequest


def check(request: Request, *, sampling_prefix: str = "sampling.") -> None:
    """Raises InvalidArgument or TooLarge with the field unless the conversation can be answered.

    sampling_prefix: of the fields of `sampling` in errors.
    """
    if request.conversation_id:
        check_conversation_id(request.conversation_id)
    if len(request.user) > MAX_USER_CHARACTERS:
        raise InvalidArgument(f"'user' may have at most {MAX_USER_CHARACTERS} characters.", field="user")
    check_messages(request.messages, begun=bool(request.conversation_id))
    images.check(request.messages, request.conversation_id)
    check_tools(request.tools, request.tool_choice)
    sampling.check(request.sampling, prefix=sampling_prefix)
    if request.HasField("evaluation"):
        check_evaluation(request)
    if request.arm:
        _check_arm(request)


def check_evaluation(request: Request) -> None:
    """Raises InvalidArgument unless the request is one that an evaluation may send; factory.yaml is not looked at."""
    wanted = request.evaluation
    if not _ID.match(wanted.run):
        raise InvalidArgument("'evaluation.run' must be 1 to 128 of A-Z a-z 0-9 . _ -", field="evaluation.run")
    if request.conversation_id:
        raise InvalidArgument(
            "'conversation_id' is not allowed in an evaluation, which stores no conversation; send all 'messages'.",
            field="conversation_id",
        )
    for name in ("model", "adapter", "prompt", "index_version"):
        if (given := getattr(wanted, name)) and not _NAME.match(given):  # it is recorded, and so no free text
            field = f"evaluation.{name}"
            raise InvalidArgument(
                f"'{field}' must be a name: at most 128 letters, digits and . _ : / @ -, of which the first is a "
                "letter or digit.",
                field=field,
            )


def as_id(text: str) -> str:
    """An id, as of a conversation, out of a text that is not empty: of a folder's name."""
    return _NOT_IN_AN_ID.sub("-", text)[:_ID_LENGTH]


def _check_arm(request: Request) -> None:
    if not _NAME.match(request.arm):  # an error repeats it
        raise InvalidArgument("'arm' must be the name of an arm in factory.yaml.", field="arm")
    if request.HasField("evaluation"):
        raise InvalidArgument("'arm' is not allowed in an evaluation, which names what answers itself.", field="arm")


def check_conversation_id(conversation_id: str) -> None:
    """Raises InvalidArgument."""
    if not _ID.match(conversation_id):
        raise InvalidArgument("'conversation_id' must be 1 to 128 of A-Z a-z 0-9 . _ -", field="conversation_id")


def check_messages(messages: Sequence[types_pb2.Message], *, begun: bool = False) -> None:
    """Raises InvalidArgument or TooLarge unless the messages are a conversation whose last one can be answered.

    begun: they continue a stored conversation, so the first may be results of tool calls in it.
    """
    _at_most("messages", messages, MAX_MESSAGES)
    pending: dict[str, None] = {}  # calls that wait for their results, in order
    characters, goes_on = 0, begun
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role not in _ROLES:
            raise InvalidArgument(f"'{field}.role' must be system, user, assistant or tool.", field=f"{field}.role")
        goes_on = goes_on and message.role == types_pb2.ROLE_TOOL and message.tool_call_id != ""
        if goes_on:
            pass
        elif message.role == types_pb2.ROLE_TOOL:
            _remove_call(message, field, pending)
        elif pending:
            raise _calls_without_results(field, pending)
        elif message.role == types_pb2.ROLE_ASSISTANT:
            _add_calls(message, field, pending)
        elif not message.content.strip() and not message.images:
            raise _empty(f"{field}.content", "")
        _check_fields_of_role(message, field)
        check_characters(message.content, f"{field}.content")
        characters += len(message.content)
    if not messages:
        raise InvalidArgument("'messages' must hold at least one message.", field="messages")
    if pending:
        raise _calls_without_results("messages", pending)
    if messages[-1].role not in (types_pb2.ROLE_USER, types_pb2.ROLE_TOOL):
        raise InvalidArgument(
            "The last message of 'messages' must be the user's question or the result of a tool.",
            field=f"messages[{len(messages) - 1}].role",
        )
    if characters > MAX_CHARACTERS:
        raise _too_long("messages", characters)


def check_tools(tools: Sequence[types_pb2.Tool], choice: types_pb2.ToolChoice) -> None:
    """Raises InvalidArgument unless the tools have distinct names and the choice is one of them."""
    _at_most("tools", tools, MAX_TOOLS)
    names: set[str] = set()
    for index, tool in enumerate(tools):
        field = f"tools[{index}].name"
        if not _TOOL_NAME.match(tool.name):
            raise InvalidArgument(f"'{field}' must be 1 to 64 letters, digits, '_' or '-'.", field=field)
        if tool.name in names:
            raise InvalidArgument(f"'{field}' is the name of an earlier tool.", field=field)
        names.add(tool.name)
    mode = choice.mode
    if mode not in types_pb2.ToolChoice.Mode.values():
        raise InvalidArgument(f"'tool_choice' has the mode {mode}, which is unknown.", field="tool_choice")
    if mode in (types_pb2.ToolChoice.MODE_REQUIRED, types_pb2.ToolChoice.MODE_NAMED) and not names:
        raise InvalidArgument("'tool_choice' asks for a tool, but 'tools' is empty.", field="tool_choice")
    if choice.name and mode != types_pb2.ToolChoice.MODE_NAMED:
        raise InvalidArgument("'tool_choice' may have a name only with the mode NAMED.", field="tool_choice")
    if mode == types_pb2.ToolChoice.MODE_NAMED and choice.name not in names:
        raise InvalidArgument("'tool_choice' must name one of 'tools'.", field="tool_choice")


def check_texts(texts: Collection[str], field: str) -> None:
    """Raises InvalidArgument or TooLarge unless there are 1 to MAX_TEXTS texts and none is empty."""
    if not texts:
        raise InvalidArgument(f"'{field}' must hold at least one text.", field=field)
    _at_most(field, texts, MAX_TEXTS)
    for index, text in enumerate(texts):
        if not text.strip():
            raise _empty(f"{field}[{index}]", "")
        check_characters(text, f"{field}[{index}]")
    if (characters := sum(map(len, texts))) > MAX_CHARACTERS:
        raise _too_long(field, characters)


def check_characters(text: str, field: str) -> None:
    """Raises InvalidArgument for NUL, which no store and no tokenizer accepts."""
    if "\x00" in text:
        raise InvalidArgument(f"'{field}' must not hold the character U+0000.", field=field)


def estimated_tokens(text: str) -> int:
    """The estimated number of tokens of a text: one for four bytes of UTF-8.

    English has about 4 bytes a token; Vietnamese about as many, with more bytes and more tokens to the syllable.
    """
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def estimated_prompt_tokens(
    messages: Iterable[types_pb2.Message],
    tools: Iterable[types_pb2.Tool] = (),
    output_format: types_pb2.OutputFormat | None = None,
) -> int:
    """The estimated number of tokens that a model reads: contents, names, images, tool calls, tools, output format."""
    messages = tuple(messages)
    tokens = images.estimated_tokens(messages)
    for message in messages:
        tokens += _FRAME_TOKENS + estimated_tokens(message.content) + estimated_tokens(message.name)
        tokens += estimated_tokens(message.tool_call_id)
        for call in message.tool_calls:
            tokens += _FRAME_TOKENS + estimated_tokens(call.id) + estimated_tokens(call.name + call.arguments_json)
    # A schema takes about as many bytes in protobuf as in JSON.
    tokens += sum(_FRAME_TOKENS + tool.ByteSize() // 4 for tool in tools)
    return tokens + (output_format.ByteSize() // 4 if output_format is not None else 0)


def _add_calls(message: types_pb2.Message, field: str, pending: dict[str, None]) -> None:
    for position, call in enumerate(message.tool_calls):
        if not call.id or call.id in pending:
            path = f"{field}.tool_calls[{position}].id"
            raise InvalidArgument(f"'{path}' must be a text that no other call has.", field=path)
        pending[call.id] = None
    if not message.content and not message.tool_calls:
        raise _empty(f"{field}.content", "; an assistant's message needs it unless it has tool_calls")


def _remove_call(message: types_pb2.Message, field: str, pending: dict[str, None]) -> None:
    if message.tool_call_id not in pending:
        path = f"{field}.tool_call_id"
        raise InvalidArgument(
            f"'{path}' must name one of the tool_calls of the assistant's message before it, once.", field=path
        )
    del pending[message.tool_call_id]


def _check_fields_of_role(message: types_pb2.Message, field: str) -> None:
    if message.tool_calls and message.role != types_pb2.ROLE_ASSISTANT:
        path = f"{field}.tool_calls"
        raise InvalidArgument(f"'{path}' is allowed only in an assistant's message.", field=path)
    if message.tool_call_id and message.role != types_pb2.ROLE_TOOL:
        path = f"{field}.tool_call_id"
        raise InvalidArgument(f"'{path}' is allowed only in a tool's message.", field=path)
    if len(message.name) > MAX_NAME_CHARACTERS:
        path = f"{field}.name"
        raise InvalidArgument(f"'{path}' may have at most {MAX_NAME_CHARACTERS} characters.", field=path)


def _at_most(field: str, items: Collection[object], most: int) -> None:
    if len(items) > most:
        raise InvalidArgument(f"'{field}' may hold at most {most} items; it holds {len(items)}.", field=field)


def _too_long(field: str, characters: int) -> TooLarge:
    return TooLarge(
        f"'{field}' may have at most {MAX_CHARACTERS} characters together; it has {characters}.", field=field
    )


def _empty(field: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"'{field}' must not be empty{why}.", field=field)


def _calls_without_results(field: str, pending: dict[str, None]) -> InvalidArgument:
    return InvalidArgument(
        f"An assistant's tool_calls must each be answered by a tool message right after it; {len(pending)} are not.",
        field=field,
    )
