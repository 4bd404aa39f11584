"""Reads requests off the wire: every field in range, or InvalidArgument with the path of the bad one.

Paths are those of OpenAI's API: messages[2].content, sampling.temperature, tools[0].name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2
from pydantic import ValidationError

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import conversation as contract
from genaifactory_common import engine_specs, sampling
from genaifactory_common.errors import InvalidArgument, TooLarge
from genaifactory_modelserver.engines.protocol import (
    Generation,
    GroundingPassage,
    Message,
    OutputFormat,
    Priority,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)

MAX_DOCUMENTS = 256
MAX_CHOICES = 10_000
MAX_PATTERN_CHARACTERS = 100_000

_ROLES: Mapping[int, Role] = {
    types_pb2.ROLE_SYSTEM: Role.SYSTEM,
    types_pb2.ROLE_USER: Role.USER,
    types_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    types_pb2.ROLE_TOOL: Role.TOOL,
}
_PRIORITIES: Mapping[int, Priority] = {
    modelserver_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    modelserver_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    modelserver_pb2.PRIORITY_BATCH: Priority.BATCH,
}


def generation(request: modelserver_pb2.GenerateRequest, *, tenant: str) -> Generation:
    """The request in the engine's terms, for the tenant. Raises InvalidArgument, TooLarge."""
    required("model", request.model)
    source = request.WhichOneof("input")
    if source is None:
        raise InvalidArgument("Give messages or a prompt.", field="messages")
    if source == "prompt":
        required("prompt", request.prompt)
    if request.priority not in _PRIORITIES:
        raise InvalidArgument(
            f"The priority {request.priority} is unknown; take INTERACTIVE or BATCH.", field="priority"
        )
    _at_most("documents", len(request.documents), MAX_DOCUMENTS, "passages")
    sampling.check(request.sampling)
    return Generation(
        model=request.model,
        messages=_messages(request.conversation) if source == "conversation" else (),
        prompt=request.prompt if source == "prompt" else None,
        continue_final_message=request.conversation.continue_final_message,
        documents=tuple(_document(passage) for passage in request.documents),
        chat_template_kwargs=sampling.template_kwargs(request.sampling),
        sampling=_sampling(request.sampling),
        tools=_tools(request),
        tool_choice=_tool_choice(request.tool_choice),
        output_format=_output_format(request.output_format),
        priority=_PRIORITIES[request.priority],
        tenant=tenant,
    )


def texts(request: modelserver_pb2.EmbedRequest, *, max_characters: int) -> list[str]:
    """The texts to embed. Raises InvalidArgument, TooLarge."""
    required("model", request.model)
    if not request.texts:
        raise InvalidArgument("Give at least one text.", field="texts")
    _at_most("texts", len(request.texts), contract.MAX_TEXTS, "texts")
    found = list(request.texts)
    for i, text in enumerate(found):
        if not text or text.isspace():
            raise InvalidArgument("The text is empty; every text needs a visible character.", field=f"texts[{i}]")
    characters = sum(map(len, found))
    if characters > max_characters:
        raise TooLarge(
            f"The texts have {characters} characters together; at most {max_characters} are taken in one call.",
            field="texts",
        )
    return found


def required(field: str, value: str) -> str:
    """The value. Raises InvalidArgument when it is empty."""
    if not value:
        raise InvalidArgument(f"The {field} is missing.", field=field)
    return value


def adapter(request: modelserver_pb2.LoadAdapterRequest) -> engine_specs.Adapter:
    """The adapter to load. Raises InvalidArgument."""
    required("name", request.name)
    required("source_uri", request.source_uri)
    try:
        return engine_specs.Adapter(name=request.name, source=request.source_uri, sha256=request.sha256.lower())
    except ValidationError as error:
        wrong = str(error.errors(include_input=False)[0]["loc"][0])
        right = {
            "name": "1 to 128 letters, digits and . _ : / -, the first a letter or digit",
            "sha256": "64 hexadecimal digits",
        }
        field = {"source": "source_uri"}.get(wrong, wrong)
        raise InvalidArgument(f"The {field} must be {right.get(wrong, 'visible text')}.", field=field) from None


def _at_most(field: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise TooLarge(f"There are {count} {what}; at most {most} are taken.", field=field)


def _messages(conversation: modelserver_pb2.Conversation) -> tuple[Message, ...]:
    if not conversation.messages:
        raise InvalidArgument("Give at least one message.", field="messages")
    _at_most("messages", len(conversation.messages), contract.MAX_PROMPT_MESSAGES, "messages")
    last = len(conversation.messages) - 1
    continues = conversation.continue_final_message
    found = tuple(
        _message(f"messages[{i}]", message, begun=continues and i == last)
        for i, message in enumerate(conversation.messages)
    )
    if continues and found[last].role is not Role.ASSISTANT:
        raise InvalidArgument(
            "With continue_final_message the last message must be the assistant's, begun but not finished.",
            field=f"messages[{last}].role",
        )
    if continues and found[last].tool_calls:
        raise InvalidArgument("An answer with tool calls cannot be continued.", field=f"messages[{last}].tool_calls")
    return found


def _message(path: str, message: types_pb2.Message, *, begun: bool) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument("The role must be system, user, assistant or tool.", field=f"{path}.role")
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidArgument("Only the assistant's messages have tool calls.", field=f"{path}.tool_calls")
    if message.tool_call_id and role is not Role.TOOL:
        raise InvalidArgument("Only a tool's messages name a tool call.", field=f"{path}.tool_call_id")
    if role is Role.TOOL and not message.tool_call_id:
        raise InvalidArgument("A tool's message must name the call that it answers.", field=f"{path}.tool_call_id")
    if message.images:
        raise InvalidArgument("No model of this server takes images; send text alone.", field=f"{path}.images[0]")
    # A tool may return nothing, an answer may be tool calls alone, and one begun may have no text yet.
    if not message.content and role is not Role.TOOL and not message.tool_calls and not begun:
        raise InvalidArgument("The content is empty.", field=f"{path}.content")
    calls = []
    for j, call in enumerate(message.tool_calls):
        if not call.id or not call.name:
            raise InvalidArgument("A tool call needs an id and a name.", field=f"{path}.tool_calls[{j}]")
        calls.append(ToolCall(call.id, call.name, call.arguments_json, call.index))
    return Message(role, message.content, message.name, tuple(calls), message.tool_call_id)


def _document(passage: types_pb2.Passage) -> GroundingPassage:
    return GroundingPassage(
        passage.text, passage.title, tuple(passage.headings), passage.language, starts_inside=passage.start_offset > 0
    )


def _sampling(wanted: types_pb2.Sampling) -> Sampling:
    has = wanted.HasField
    return Sampling(
        temperature=wanted.temperature if has("temperature") else None,
        top_p=wanted.top_p if has("top_p") else None,
        top_k=wanted.top_k if has("top_k") else None,
        max_tokens=wanted.max_tokens if has("max_tokens") else None,
        stop=tuple(wanted.stop),
        seed=wanted.seed if has("seed") else None,
        frequency_penalty=wanted.frequency_penalty if has("frequency_penalty") else None,
        presence_penalty=wanted.presence_penalty if has("presence_penalty") else None,
        min_p=wanted.min_p if has("min_p") else None,
        repetition_penalty=wanted.repetition_penalty if has("repetition_penalty") else None,
        n=wanted.n if has("n") else 1,
        logprobs=wanted.logprobs,
        top_logprobs=wanted.top_logprobs,
    )


def _tools(request: modelserver_pb2.GenerateRequest) -> tuple[Tool, ...]:
    contract.check_tools(request.tools, request.tool_choice)
    found = []
    for i, tool in enumerate(request.tools):
        parameters = _plain(f"tools[{i}].parameters", tool.parameters)
        if parameters.get("type", "object") != "object":
            raise InvalidArgument(
                "A tool's parameters must be a JSON Schema of type 'object'.", field=f"tools[{i}].parameters"
            )
        found.append(Tool(tool.name, tool.description, parameters, tool.strict))
    return tuple(found)


def _tool_choice(choice: types_pb2.ToolChoice) -> ToolChoice:
    modes = types_pb2.ToolChoice
    if choice.mode == modes.MODE_NAMED:
        return ToolChoice("named", choice.name)
    if choice.mode == modes.MODE_REQUIRED:
        return ToolChoice("required")
    return ToolChoice("none" if choice.mode == modes.MODE_NONE else "auto")


def _output_format(output: types_pb2.OutputFormat) -> OutputFormat:
    kind = output.WhichOneof("constraint")
    match kind:
        case None:
            return OutputFormat()
        case "json_schema":
            return OutputFormat(kind, json_schema=_plain("output_format.json_schema", output.json_schema))
        case "json_object":
            if not output.json_object:
                raise InvalidArgument(
                    "json_object must be true; leave output_format away for free text.",
                    field="output_format.json_object",
                )
            return OutputFormat(kind)
        case "choice":
            choices = tuple(output.choice.values)
            _at_most("output_format.choice.values", len(choices), MAX_CHOICES, "choices")
            if not choices or "" in choices:
                raise InvalidArgument("Give at least one choice, none empty.", field="output_format.choice.values")
            return OutputFormat(kind, choices=choices)
        case "regex" | "grammar":
            pattern = output.regex if kind == "regex" else output.grammar
            if not 1 <= len(pattern) <= MAX_PATTERN_CHARACTERS:
                raise InvalidArgument(
                    f"It has 1 to {MAX_PATTERN_CHARACTERS} characters, this one {len(pattern)}.",
                    field=f"output_format.{kind}",
                )
            return OutputFormat(kind, pattern=pattern)


def _plain(field: str, struct: struct_pb2.Struct) -> dict[str, Any]:
    """The struct as JSON values; whole numbers as integers, which a Struct cannot tell from floats."""
    try:
        document: dict[str, Any] = json_format.MessageToDict(struct)
    except ValueError:  # NaN or infinity
        raise InvalidArgument("It holds a number that is no number of JSON.", field=field) from None
    restored: dict[str, Any] = _whole(document)
    return restored


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
