"""A request for an answer, checked field by field before it is processed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf import struct_pb2

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import conversation, identity
from genaifactory_common.errors import InvalidArgument

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class CheckedRequest:
    """One request for an answer. The messages must not be changed."""

    request_id: str
    route: str
    messages: tuple[types_pb2.Message, ...]
    """Oldest first; the last is the user's, or the result of a tool."""
    sampling: types_pb2.Sampling
    tools: tuple[types_pb2.Tool, ...] = ()
    tool_choice: types_pb2.ToolChoice | None = None
    output_format: types_pb2.OutputFormat | None = None
    conversation_id: str = ""
    user: str = ""
    fresh: bool = False
    """Whether the cache must not answer it."""
    search_options: types_pb2.SearchOptions = field(default_factory=types_pb2.SearchOptions)
    """For every search of the request; the retriever checks them."""
    arm: str = ""
    """The arm that a tester chose; empty: the one that the route's split assigns."""
    evaluation: types_pb2.Evaluation | None = None
    """Set for a request of an evaluation, which the cache neither answers nor stores."""

    @property
    def choices(self) -> int:
        """Number of answers asked for."""
        return self.sampling.n or 1

    def ids(self) -> dict[str, str]:
        """Ids and names by their field that are stored or reach the model, without `user`."""
        ids = {"conversation_id": self.conversation_id}
        for i, message in enumerate(self.messages):
            at = f"messages[{i}]"
            ids |= {f"{at}.name": message.name, f"{at}.tool_call_id": message.tool_call_id}
            for j, call in enumerate(message.tool_calls):
                ids |= {f"{at}.tool_calls[{j}].id": call.id, f"{at}.tool_calls[{j}].name": call.name}
        return {field: text for field, text in ids.items() if text}

    def texts_beside_messages(self) -> dict[str, str]:
        """Other texts that reach the model, by their field: tools, stops, variables of the chat template and the output
        format."""
        texts = {
            f"tools[{i}]": _lines(tool.description, *_strings(tool.parameters)) for i, tool in enumerate(self.tools)
        }
        texts["sampling.stop"] = _lines(*self.sampling.stop)
        texts["sampling.chat_template_kwargs"] = _lines(*_strings(self.sampling.chat_template_kwargs))
        if form := self.output_format:
            texts["output_format"] = _lines(*_strings(form.json_schema), form.regex, *form.choice.values, form.grammar)
        return {field: text for field, text in texts.items() if text}


def from_request(request: orchestrator_pb2.AnswerRequest) -> CheckedRequest:
    """The checked request of the current caller. Raises InvalidArgument with the field, PermissionDenied."""
    check_request_id(request.request_id)
    if not request.route:
        raise InvalidArgument("route must name a route of factory.yaml.", field="route")
    conversation.check(request)
    if request.HasField("evaluation") or request.arm:
        identity.current().require("evaluate")
    return CheckedRequest(
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
        search_options=request.search_options,
        arm=request.arm,
        evaluation=request.evaluation if request.HasField("evaluation") else None,
    )


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgument."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument("request_id must be 1 to 128 of A-Z a-z 0-9 . _ -", field="request_id")


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _strings(value: struct_pb2.Struct | struct_pb2.Value) -> Iterator[str]:
    """Every text in a JSON value, names and values, without JSON's escapes, which could hide something."""
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
