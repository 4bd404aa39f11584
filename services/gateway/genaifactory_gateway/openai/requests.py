"""The bodies of OpenAI's API that the gateway accepts, and their conversion to the platform's messages.

A wrong type or a value out of range is refused with the field's name, as by OpenAI's own API. `fields` decides about
fields that are in none of these models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from genaifactory.orchestrator.v1 import orchestrator_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import bounds, conversation, sampling
from genaifactory_common.errors import InvalidArgument
from genaifactory_gateway import jsonbody, rules
from genaifactory_gateway.openai import content as openai_content
from genaifactory_gateway.openai import token_ids
from genaifactory_gateway.openai.content import Body, Content, ImagePart, ImageUrl, RefusalPart, TextPart, branch

_ROLES = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
    "tool": types_pb2.ROLE_TOOL,
}
_CHOICE_MODES = {
    "none": types_pb2.ToolChoice.MODE_NONE,
    "auto": types_pb2.ToolChoice.MODE_AUTO,
    "required": types_pb2.ToolChoice.MODE_REQUIRED,
}


class FunctionCall(Body):
    """The function that a tool call names."""

    name: str = Field(pattern=conversation.TOOL_NAME)
    arguments: str


class ToolCall(Body):
    """A tool call in an assistant's message."""

    id: str = Field(min_length=1, max_length=rules.MAX_NAME_CHARACTERS)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Body):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(default=None, pattern=r"^[^\s<|\\/>]{1,64}$")
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=conversation.MAX_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=rules.MAX_NAME_CHARACTERS)
    # Fields of our own responses, which clients send back in the assistant's messages.
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class FunctionSpec(Body):
    """A function that the model may call."""

    name: str = Field(pattern=conversation.TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Body):
    """The function of a named choice."""

    name: str = Field(pattern=conversation.TOOL_NAME)


class NamedChoice(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """The schema that the output must follow."""

    name: str = Field(pattern=conversation.TOOL_NAME)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the output."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's extra: exactly one constraint of the output."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1)
    choice: list[str] | None = Field(default=None, min_length=1, max_length=rules.MAX_PARTS)
    grammar: str | None = Field(default=None, min_length=1)


class SearchOptions(Body):
    """Our extra: how documents are searched. Named and typed as in types.v1.SearchOptions, which has the bounds."""

    filter: dict[str, str] | None = None


class StreamOptions(Body):
    """What a stream contains besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # without effect: chunks have no padding that hides their length


def _ranged(name: str) -> Any:
    allowed = sampling.RANGES[name]
    if allowed.above:
        return Field(default=None, gt=allowed.least, le=allowed.most)
    return Field(default=None, ge=allowed.least, le=allowed.most)


class ChatCompletion(Body):
    """The body of POST /v1/chat/completions."""

    model: str = Field(min_length=1, max_length=rules.MAX_NAME_CHARACTERS)
    messages: list[Message] = Field(min_length=1, max_length=conversation.MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = _ranged("max_tokens")
    max_completion_tokens: int | None = _ranged("max_tokens")
    temperature: float | None = _ranged("temperature")
    top_p: float | None = _ranged("top_p")
    top_k: int | None = _ranged("top_k")
    min_p: float | None = _ranged("min_p")
    n: int | None = _ranged("n")
    stop: (
        Annotated[
            Annotated[str, Field(min_length=1), Tag("~text")]
            | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=sampling.MAX_STOPS), Tag("~list")],
            branch(text=str, list=list),
        ]
        | None
    ) = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    frequency_penalty: float | None = _ranged("frequency_penalty")
    presence_penalty: float | None = _ranged("presence_penalty")
    repetition_penalty: float | None = _ranged("repetition_penalty")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=sampling.MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=conversation.MAX_TOOLS)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("~mode")] | Annotated[NamedChoice, Tag("~named")],
            branch(mode=str, named=dict),
        ]
        | None
    ) = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    search_options: SearchOptions | None = None
    conversation_id: str | None = Field(default=None, pattern=conversation.CONVERSATION_ID)
    user: str | None = Field(default=None, max_length=conversation.MAX_USER_CHARACTERS)
    safety_identifier: str | None = Field(default=None, max_length=conversation.MAX_USER_CHARACTERS)
    modalities: list[Literal["text"]] | None = Field(default=None, min_length=1)


def _kind_of_input(value: Any) -> str | None:
    if isinstance(value, str):
        return "~text"
    if not isinstance(value, list):
        return None
    kind = type(value[0]) if value else str
    return {int: "~ids", list: "~lists"}.get(kind, "~texts")


_by_kind = Discriminator(
    _kind_of_input, custom_error_type="union_type", custom_error_message="Input should be a string or an array"
)


class Embeddings(Body):
    """The body of POST /v1/embeddings."""

    max_values: ClassVar[int] = 1_000_000  # token ids, of which clients send 300,000 at once

    model: str = Field(min_length=1, max_length=rules.MAX_NAME_CHARACTERS)
    input: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[list[str], Field(max_length=conversation.MAX_TEXTS), Tag("~texts")]
        | Annotated[list[int], Tag("~ids")]
        | Annotated[list[list[int]], Field(max_length=conversation.MAX_TEXTS), Tag("~lists")],
        _by_kind,
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = Field(default=None, max_length=conversation.MAX_USER_CHARACTERS)

    def texts(self) -> list[str]:
        """The input as a list of texts; token ids are decoded. Raises InvalidArgument."""
        given: Any = self.input  # of one kind, by the discriminator
        if isinstance(given, str):
            return [given]
        if not self.has_token_ids:
            return list(given)
        if isinstance(given[0], int):
            return token_ids.texts([given], ["input"])
        return token_ids.texts(given, [f"input[{i}]" for i in range(len(given))])

    @property
    def has_token_ids(self) -> bool:
        """Whether the input is token ids."""
        return bool(self.input) and not isinstance(self.input[0], str)


class Feedback(Body):
    """The body of POST /v1/feedback. It is stored, so a misspelt field is refused."""

    lenient: ClassVar[bool] = False

    request_id: str = Field(pattern=rules.REQUEST_ID)
    rating: Literal["up", "down"] | None = None
    correction: str = Field(default="", max_length=bounds.MAX_CORRECTION_CHARACTERS)
    comment: str = Field(default="", max_length=bounds.MAX_COMMENT_CHARACTERS)
    ground_truth: dict[str, Any] | None = None
    idempotency_key: str = Field(default="", max_length=rules.MAX_IDEMPOTENCY_KEY_CHARACTERS)


PARTS: dict[str, tuple[type[Body], ...]] = {
    "messages": (Message,),
    "content": (TextPart, RefusalPart, ImagePart),
    "image_url": (ImageUrl,),
    "tool_calls": (ToolCall,),
    "tools": (Tool,),
    "function": (FunctionSpec, FunctionCall),
    "tool_choice": (NamedChoice,),
    "response_format": (ResponseFormat,),
    "json_schema": (JsonSchema,),
    "structured_outputs": (StructuredOutputs,),
    "stream_options": (StreamOptions,),
    "search_options": (SearchOptions,),
}
"""The models of nested objects, by the field that contains them."""


def named_as_sent(field: str | None, body: Body) -> str | None:
    """The path in the client's body for a path in our contracts, which the services name in errors."""
    if field is None:
        return None
    if field == "texts" or field.startswith("texts["):
        return "input" + field.removeprefix("texts")
    if field == "output_format" or field.startswith("output_format."):
        sent = isinstance(body, ChatCompletion) and body.structured_outputs is not None
        return "structured_outputs" if sent else "response_format"
    if isinstance(body, ChatCompletion) and (named := re.match(r"messages\[(\d+)\]\.(images\[.+)", field)):
        return f"messages[{named[1]}]." + openai_content.image_as_sent(body.messages[int(named[1])].content, named[2])
    field = field.removeprefix("sampling.")
    if field == "max_tokens" and isinstance(body, ChatCompletion) and body.max_tokens is None:
        return "max_completion_tokens"
    return re.sub(r"^(tools\[\d+\])\.(name|parameters)", r"\1.function.\2", field)


def answer_request(body: ChatCompletion, request_id: str, *, arm: str = "") -> orchestrator_pb2.AnswerRequest:
    """The orchestrator's request for a chat completion. Raises InvalidArgument for contradicting fields.

    arm: that a tester chose; empty: none.
    """
    _check_together(body)
    request = orchestrator_pb2.AnswerRequest(
        request_id=request_id,
        route=body.model,
        messages=[_message(message) for message in body.messages],
        sampling=_sampling(body),
        tools=[_tool(tool.function, index) for index, tool in enumerate(body.tools or ())],
        tool_choice=_tool_choice(body.tool_choice),
        output_format=_output_format(body),
        conversation_id=body.conversation_id or "",
        user=body.user or body.safety_identifier or "",
        search_options=_search_options(body.search_options),
        arm=arm,
        answer_only=True,  # route, passages and verdicts are for the record, not for clients
    )
    conversation.check(request, sampling_prefix="")
    return request


def _search_options(options: SearchOptions | None) -> types_pb2.SearchOptions | None:
    return None if options is None else types_pb2.SearchOptions(**options.model_dump(exclude_none=True))


def _check_together(body: ChatCompletion) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidArgument("'stream_options' is allowed only with 'stream': true.", field="stream_options")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidArgument(
            "'max_tokens' and 'max_completion_tokens' differ; send one of them.", field="max_completion_tokens"
        )
    form = body.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise InvalidArgument(
            "'response_format.json_schema' is required with the type 'json_schema', and allowed only with it.",
            field="response_format.json_schema",
        )
    outputs = body.structured_outputs
    if outputs is not None:
        if form is not None and form.type != "text":
            raise InvalidArgument(
                "'structured_outputs' and 'response_format' both constrain the output; send one of them.",
                field="structured_outputs",
            )
        given = [c for c in (outputs.json_, outputs.regex, outputs.choice, outputs.grammar) if c is not None]
        if len(given) != 1:
            raise InvalidArgument(
                "'structured_outputs' must contain exactly one of json, regex, choice and grammar.",
                field="structured_outputs",
            )


def _message(message: Message) -> types_pb2.Message:
    content, shown = openai_content.text_and_images(message.content)
    return types_pb2.Message(
        role=_ROLES[message.role],
        content=content or message.refusal or "",
        images=shown,
        name=message.name or "",
        tool_calls=[
            types_pb2.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments, index=i)
            for i, call in enumerate(message.tool_calls or ())
        ],
        tool_call_id=message.tool_call_id or "",
    )


def _sampling(body: ChatCompletion) -> types_pb2.Sampling:
    kwargs = body.chat_template_kwargs
    # None leaves an optional field unset.
    return types_pb2.Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        n=body.n,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        chat_template_kwargs=jsonbody.struct(kwargs, "chat_template_kwargs") if kwargs else None,
    )


def _tool(function: FunctionSpec, index: int) -> types_pb2.Tool:
    parameters = function.parameters
    return types_pb2.Tool(
        name=function.name,
        description=function.description or "",
        parameters=jsonbody.struct(parameters, f"tools[{index}].function.parameters") if parameters else None,
        strict=bool(function.strict),
    )


def _tool_choice(choice: str | NamedChoice | None) -> types_pb2.ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        return types_pb2.ToolChoice(mode=_CHOICE_MODES[choice])
    return types_pb2.ToolChoice(mode=types_pb2.ToolChoice.MODE_NAMED, name=choice.function.name)


def _output_format(body: ChatCompletion) -> types_pb2.OutputFormat | None:
    if outputs := body.structured_outputs:
        if outputs.json_ is not None:
            return types_pb2.OutputFormat(json_schema=jsonbody.struct(outputs.json_, "structured_outputs.json"))
        if outputs.choice is not None:
            return types_pb2.OutputFormat(choice=types_pb2.Choices(values=outputs.choice))
        if outputs.regex is not None:
            return types_pb2.OutputFormat(regex=outputs.regex)
        return types_pb2.OutputFormat(grammar=outputs.grammar or "")
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.json_schema is None:
        return types_pb2.OutputFormat(json_object=True)
    schema = jsonbody.struct(form.json_schema.schema_, "response_format.json_schema.schema")
    return types_pb2.OutputFormat(json_schema=schema)
