"""What a client asks, checked field by field before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf import struct_pb2

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, sampling
from genaifactory_common.errors import InvalidArgument, TooLarge

_MAX_MESSAGES = 1000
_MAX_CHARACTERS = 4_000_000
_MAX_TOOLS = 128
_MAX_TEXTS = 2048
_CONVERSATION_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Question:
    """One request for an answer. The messages are only read, never changed."""

    request_id: str
    route: str
    messages: tuple[types_pb2.Message, ...]
    """Oldest first; the last is a person's, or the result of a tool."""
    sampling: types_pb2.Sampling
    tools: tuple[types_pb2.Tool, ...] = ()
    tool_choice: types_pb2.ToolChoice | None = None
    output_format: types_pb2.OutputFormat | None = None
    conversation_id: str = ""
    user: str = ""
    fresh: bool = False
    """Not to be answered from the cache."""

    @property
    def choices(self) -> int:
        """Answers wanted."""
        return self.sampling.n or 1

    def ids(self) -> dict[str, str]:
        """What the client calls things that are stored or reach the model, by its field; not `user`."""
        ids = {"conversation_id": self.conversation_id}
        for i, message in enumerate(self.messages):
            at = f"messages[{i}]"
            ids |= {f"{at}.name": message.name, f"{at}.tool_call_id": message.tool_call_id}
            for j, call in enumerate(message.tool_calls):
                ids |= {f"{at}.tool_calls[{j}].id": call.id, f"{at}.tool_calls[{j}].name": call.name}
        return {field: text for field, text in ids.items() if text}

    def settings(self) -> dict[str, str]:
        """The texts beside the messages that reach the model, by their field: tools, stops, variables of
        the chat template and the output's form."""
        texts = {
            f"tools[{i}]": _lines(tool.description, *_strings(tool.parameters)) for i, tool in enumerate(self.tools)
        }
        texts["sampling.stop"] = _lines(*self.sampling.stop)
        texts["sampling.chat_template_kwargs"] = _lines(*_strings(self.sampling.chat_template_kwargs))
        if form := self.output_format:
            texts["output_format"] = _lines(*_strings(form.json_schema), form.regex, *form.choice.values, form.grammar)
        return {field: text for field, text in texts.items() if text}


def from_request(request: orchestrator_pb2.AnswerRequest) -> Question:
    """The question in a message from the wire. Raises InvalidArgument with the field."""
    check_request_id(request.request_id)
    if not request.route:
        raise InvalidArgument("route must name a route of factory.yaml.", field="route")
    if request.conversation_id and not _CONVERSATION_ID.fullmatch(request.conversation_id):
        raise InvalidArgument("conversation_id must be 1 to 128 of A-Z a-z 0-9 . _ -", field="conversation_id")
    if len(request.user) > 256:
        raise TooLarge("user must have at most 256 characters.", field="user")
    _check_messages(request.messages)
    images.check(request.messages, request.conversation_id)
    sampling.check(request.sampling)
    _check_tools(request)
    return Question(
        request_id=request.request_id,
        route=request.route,
        messages=tuple(request.messages),
        sampling=request.sampling,
        tools=tuple(request.tools),
        tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        output_format=request.output_format if request.HasField("output_format") else None,
        conversation_id=request.conversation_id,
        user=request.user,
        fresh=request.fresh,
    )


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgument."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument("request_id must be 1 to 128 of A-Z a-z 0-9 . _ -", field="request_id")


def check_texts(texts: Sequence[str]) -> None:
    """Texts to embed: 1 to 2048, none empty. Raises InvalidArgument with the field."""
    if not 1 <= len(texts) <= _MAX_TEXTS:
        raise InvalidArgument(f"texts must hold 1 to {_MAX_TEXTS} texts, not {len(texts)}.", field="texts")
    for i, text in enumerate(texts):
        if not text.strip():
            raise InvalidArgument(f"texts[{i}] must not be empty.", field=f"texts[{i}]")
    if sum(map(len, texts)) > _MAX_CHARACTERS:
        raise TooLarge(f"texts must have at most {_MAX_CHARACTERS} characters together.", field="texts")


def check_conversation_id(conversation_id: str) -> None:
    """Raises InvalidArgument."""
    if not _CONVERSATION_ID.fullmatch(conversation_id):
        raise InvalidArgument("conversation_id must be 1 to 128 of A-Z a-z 0-9 . _ -", field="conversation_id")


def _check_messages(messages: Sequence[types_pb2.Message]) -> None:
    if not 1 <= len(messages) <= _MAX_MESSAGES:
        raise InvalidArgument(
            f"messages must hold 1 to {_MAX_MESSAGES} messages, not {len(messages)}.", field="messages"
        )
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if message.role not in (
            types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_TOOL,
        ):  # fmt: skip
            raise InvalidArgument(f"{at}.role must be SYSTEM, USER, ASSISTANT or TOOL.", field=f"{at}.role")
        if message.tool_calls and message.role != types_pb2.ROLE_ASSISTANT:
            raise InvalidArgument(
                f"{at} has tool_calls, which only a message of the assistant has.", field=f"{at}.tool_calls"
            )
        if bool(message.tool_call_id) != (message.role == types_pb2.ROLE_TOOL):
            raise InvalidArgument(
                f"{at}.tool_call_id must be given in a message of a tool, and in no other.", field=f"{at}.tool_call_id"
            )
        if (
            not message.content.strip()
            and not message.images
            and message.role in (types_pb2.ROLE_USER, types_pb2.ROLE_SYSTEM)
        ):
            raise InvalidArgument(f"{at}.content must not be empty.", field=f"{at}.content")
        if len(message.name) > 64:
            raise TooLarge(f"{at}.name must have at most 64 characters.", field=f"{at}.name")
    if messages[-1].role not in (types_pb2.ROLE_USER, types_pb2.ROLE_TOOL):
        raise InvalidArgument(
            "The last of messages must be the question: role USER, or TOOL after a tool call.",
            field=f"messages[{len(messages) - 1}].role",
        )
    if sum(len(message.content) for message in messages) > _MAX_CHARACTERS:
        raise TooLarge(f"messages must have at most {_MAX_CHARACTERS} characters together.", field="messages")


def _check_tools(request: orchestrator_pb2.AnswerRequest) -> None:
    if len(request.tools) > _MAX_TOOLS:
        raise InvalidArgument(f"tools must hold at most {_MAX_TOOLS} tools.", field="tools")
    names: set[str] = set()
    for i, tool in enumerate(request.tools):
        if not _TOOL_NAME.fullmatch(tool.name):
            raise InvalidArgument(f"tools[{i}].name must be 1 to 64 of A-Z a-z 0-9 _ -", field=f"tools[{i}].name")
        if tool.name in names:
            raise InvalidArgument(f"tools[{i}].name: '{tool.name}' stands twice.", field=f"tools[{i}].name")
        names.add(tool.name)
    mode = request.tool_choice.mode
    if mode == types_pb2.ToolChoice.MODE_NAMED and request.tool_choice.name not in names:
        raise InvalidArgument("tool_choice.name must name one of tools.", field="tool_choice.name")
    if mode == types_pb2.ToolChoice.MODE_REQUIRED and not names:
        raise InvalidArgument("tool_choice requires a tool, so tools must hold one.", field="tool_choice.mode")


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _strings(value: struct_pb2.Struct | struct_pb2.Value) -> Iterator[str]:
    """Every text in a JSON value, names and values, as it is meant: an escape of JSON would hide it."""
    if isinstance(value, struct_pb2.Struct):
        for name, entry in value.fields.items():
            yield name
            yield from _strings(entry)
        return
    match value.WhichOneof("kind"):
        case "struct_value":
            yield from _strings(value.struct_value)
        case "list_value":
            for entry in value.list_value.values:
                yield from _strings(entry)
        case "string_value":
            yield value.string_value
