"""Converts prompts to JSON of OpenAI's chat and embeddings APIs, and their responses to pieces and vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import struct_pb2

from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_orchestrator.models.backend import (
    ChoiceFinished,
    Delta,
    Piece,
    Prompt,
    Thinking,
    ToolCallDelta,
    Usage,
)

_ROLES = {
    types_pb2.ROLE_SYSTEM: "system",
    types_pb2.ROLE_USER: "user",
    types_pb2.ROLE_ASSISTANT: "assistant",
    types_pb2.ROLE_TOOL: "tool",
}
_FINISH_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
    "model_length": types_pb2.FINISH_REASON_LENGTH,
    "max_tokens": types_pb2.FINISH_REASON_LENGTH,
    "tool_calls": types_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": types_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": types_pb2.FINISH_REASON_CONTENT_FILTER,
}
_BROKEN_OFF = ("error", "abort", "cancelled")
_TOOL_CHOICES = {
    types_pb2.ToolChoice.MODE_NONE: "none",
    types_pb2.ToolChoice.MODE_AUTO: "auto",
    types_pb2.ToolChoice.MODE_REQUIRED: "required",
}
_DETAILS = {types_pb2.Image.DETAIL_LOW: "low", types_pb2.Image.DETAIL_HIGH: "high"}
_MAX_TOOL_CALLS = 128

GO_ON = (
    "Your last message was cut off. Go on with it from the exact point where it stops, in the same language and form. "
    "Repeat nothing of it and do not comment on this. Begin with its very next character: with a space if a new word "
    "begins there, with the rest of the word if a word was cut off."
)


class Malformed(Exception):
    """The upstream's JSON violates its API. The message names the place, never the content."""


class Unsupported(Exception):
    """The prompt needs a parameter that this dialect does not have."""

    def __init__(self, error: InvalidArgument) -> None:
        super().__init__(error.message)
        self.error = error


def chat_body(backend: specs.OpenAIBackend, prompt: Prompt, prefix: str) -> dict[str, Any]:
    """The body of POST /chat/completions; with `prefix`, of a request to continue it. Raises Unsupported."""
    messages = [_message(message) for message in prompt.messages]
    body: dict[str, Any] = {
        "model": backend.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if backend.dialect == "vllm":
        body["stream_options"]["continuous_usage_stats"] = True
    if prefix:
        messages.append({"role": "assistant", "content": prefix})
        if backend.dialect == "vllm":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            messages.append({"role": "user", "content": GO_ON})
    body |= _sampling(backend, prompt.sampling)
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
        if prompt.tool_choice is not None and (choice := _tool_choice(prompt.tool_choice)) is not None:
            body["tool_choice"] = choice
    if prompt.output_format is not None:
        body |= _output_format(backend, prompt.output_format)
    return body


def pieces(chunk: Any, choices: int) -> Iterator[Piece]:
    """The pieces in one chunk of a chat stream. Raises Malformed."""
    if not isinstance(chunk, dict):
        raise Malformed("a chunk is no object")
    usage = chunk.get("usage")
    if usage is not None:
        yield _usage(usage)
    for choice in _list(chunk, "choices"):
        index = choice.get("index", 0)
        if type(index) is not int or not 0 <= index < choices:
            raise Malformed("choices[].index")
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from _delta(delta, index, choice.get("logprobs"))
        elif delta is not None:
            raise Malformed("choices[].delta")
        reason = choice.get("finish_reason")
        if reason is None:
            continue
        if not isinstance(reason, str):
            raise Malformed("choices[].finish_reason")
        if reason in _BROKEN_OFF:
            raise Malformed("the model broke off")
        yield ChoiceFinished(_FINISH_REASONS.get(reason, types_pb2.FINISH_REASON_STOP), index)


def vectors(body: Any, count: int) -> tuple[list[list[float]], Usage | None]:
    """The `count` vectors of an embeddings response in the order of the texts. Raises Malformed."""
    if not isinstance(body, dict):
        raise Malformed("the response is no object")
    entries = _list(body, "data")
    found: dict[int, list[float]] = {}
    for position, entry in enumerate(entries):
        vector = entry.get("embedding")
        if not isinstance(vector, list) or not vector or not all(_is_number(value) for value in vector):
            raise Malformed("data[].embedding")
        index = entry.get("index", position)
        if type(index) is not int:
            raise Malformed("data[].index")
        found[index] = vector
    if len(entries) != count or any(index not in found for index in range(count)):
        raise Malformed("data does not have one vector for each text")
    if len({len(vector) for vector in found.values()}) > 1:
        raise Malformed("the vectors have different lengths")
    usage = body.get("usage")
    return [found[index] for index in range(count)], None if usage is None else _usage(usage)


def _message(message: types_pb2.Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _ROLES[message.role], "content": message.content}
    if message.images:
        plain["content"] = [_part(part) for part in images.parts(message)]
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["content"] = message.content or None
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    return plain


def _part(part: str | types_pb2.Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    shown = {"url": images.data_url(part)}
    if detail := _DETAILS.get(part.detail):
        shown["detail"] = detail
    return {"type": "image_url", "image_url": shown}


def _sampling(backend: specs.OpenAIBackend, sampling: types_pb2.Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        if sampling.HasField(name):
            body[name] = _short(getattr(sampling, name))
    if sampling.HasField("max_tokens"):
        body["max_completion_tokens" if backend.dialect == "openai" else "max_tokens"] = sampling.max_tokens
    if sampling.HasField("seed"):
        body["seed"] = sampling.seed
    if sampling.HasField("n"):
        body["n"] = sampling.n
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.top_logprobs
    for name in ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs"):
        if not sampling.HasField(name):  # type: ignore[arg-type]  # a name of the message
            continue
        if backend.dialect != "vllm":
            raise _unsupported(name, f"sampling.{name}")
        value = getattr(sampling, name)
        if isinstance(value, struct_pb2.Struct):
            body[name] = _plain(value)
        else:
            body[name] = _short(value) if isinstance(value, float) else value
    return body


def _short(value: float) -> float:
    """The shortest form of a 32-bit float: 0.7, and not 0.699999988."""
    return float(f"{value:.7g}")


def _tool(tool: types_pb2.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = _plain(tool.parameters)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: types_pb2.ToolChoice) -> str | dict[str, Any] | None:
    if choice.mode == types_pb2.ToolChoice.MODE_NAMED:
        return {"type": "function", "function": {"name": choice.name}}
    return _TOOL_CHOICES.get(choice.mode)


def _output_format(backend: specs.OpenAIBackend, output_format: types_pb2.OutputFormat) -> dict[str, Any]:
    kind = output_format.WhichOneof("constraint")
    if kind is None or (kind == "json_object" and not output_format.json_object):
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind == "json_schema":
        schema = {"name": "output", "schema": _plain(output_format.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if backend.dialect != "vllm":
        raise _unsupported(f"{kind} as an output format", "output_format")
    value = list(output_format.choice.values) if kind == "choice" else getattr(output_format, kind)
    return {"structured_outputs": {kind: value}}


def _unsupported(what: str, field: str) -> Unsupported:
    return Unsupported(InvalidArgument(f"The model's API does not accept {what}; leave it out.", field=field))


def _plain(value: struct_pb2.Struct | struct_pb2.Value) -> Any:
    """A Struct as Python values, whole numbers as int: a JSON Schema's maxLength must be 5, not 5.0."""
    if isinstance(value, struct_pb2.Struct):
        return {name: _plain(entry) for name, entry in value.fields.items()}
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value)
    if kind == "list_value":
        return [_plain(entry) for entry in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if math.isfinite(number) and number.is_integer() and abs(number) < 2**53 else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _delta(delta: dict[str, Any], index: int, logprobs: Any) -> Iterator[Piece]:
    text = delta.get("content") or delta.get("refusal") or ""
    if not isinstance(text, str):
        raise Malformed("choices[].delta.content")
    if text:
        yield Delta(text, index, _logprobs(logprobs) if logprobs is not None else ())
    elif delta.get("reasoning_content") or delta.get("reasoning"):
        yield Thinking()
    if delta.get("tool_calls") is None:
        return
    for position, call in enumerate(_list(delta, "tool_calls")):
        yield ToolCallDelta(_tool_call(call, position), index)


def _tool_call(call: dict[str, Any], position: int) -> types_pb2.ToolCall:
    function = call.get("function") or {}
    index = call.get("index", position)  # some servers send whole calls, without an index
    if not isinstance(function, dict) or type(index) is not int or not 0 <= index < _MAX_TOOL_CALLS:
        raise Malformed("choices[].delta.tool_calls[]")
    try:
        return types_pb2.ToolCall(
            id=call.get("id") or "",
            name=function.get("name") or "",
            arguments_json=function.get("arguments") or "",
            index=index,
        )
    except TypeError:
        raise Malformed("choices[].delta.tool_calls[]") from None


def _logprobs(logprobs: Any) -> tuple[types_pb2.TokenLogprob, ...]:
    if not isinstance(logprobs, dict):
        raise Malformed("choices[].logprobs")
    try:
        return tuple(
            types_pb2.TokenLogprob(
                token=entry["token"],
                logprob=entry["logprob"],
                top=[
                    types_pb2.TokenLogprob(token=top["token"], logprob=top["logprob"])
                    for top in entry.get("top_logprobs") or ()
                ],
            )
            for entry in logprobs.get("content") or ()
        )
    except (AttributeError, KeyError, TypeError):
        raise Malformed("choices[].logprobs.content[]") from None


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        raise Malformed("usage")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached or 0)
    if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
        raise Malformed("usage")
    prompt, completion, cached = counts
    return Usage(prompt, completion, cached)


def _list(owner: dict[str, Any], name: str) -> Sequence[dict[str, Any]]:
    found = owner.get(name)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise Malformed(name)
    return found


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int
