"""A generation in vLLM's terms: the prompt as tokens, the sampling parameters, and what reads tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2  # vLLM's own dependency, as vLLM is of this module
from vllm.config import ModelConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.parser import Parser, ParserManager
from vllm.renderers import BaseRenderer, ChatParams
from vllm.renderers.hf import HfRenderer, resolve_chat_template
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import ContextTooLong, FactoryError, InvalidArgument
from genaifactory_modelserver.engines.protocol import Generation, Message, OutputFormat, Role, Tool
from genaifactory_modelserver.engines.vllm import plain_chat

# vLLM's own defaults, where neither the request nor the model's generation_config.json sets a value.
_DEFAULTS: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request in vLLM's terms."""

    prompt: Any
    """Tokens and what belongs to them (vLLM's EngineInput)."""
    prompt_tokens: int
    sampling: SamplingParams
    tools: ToolReading | None
    """None: the output has no tool calls to look for."""


@dataclass(frozen=True, slots=True)
class ToolReading:
    """What tool calls are read from an output with."""

    request: ChatCompletionRequest
    structured: StructuredOutputsParams | None
    """The form that calls must have."""
    make: Callable[[], Parser]
    """Makes one parser; each choice of a request needs its own."""


class Preparing:
    """Prepares requests for one engine."""

    def __init__(self, spec: Vllm, config: VllmConfig, renderer: BaseRenderer, *, path: str) -> None:
        """path: of the entry in factory.yaml. Raises InvalidArgument when there is no such tool parser."""
        self._spec = spec
        self._model = config.model_config
        self._renderer = renderer
        self._defaults = {**_DEFAULTS, **self._model.get_diff_sampling_param()}
        self._stop_token_ids = self._defaults.pop("stop_token_ids", None)
        self._max_tokens: int | None = self._defaults.pop("max_tokens", None)
        self.plain = spec.chat_template is None and not _has_chat_template(renderer, self._model)
        """Whether conversations are written in the plain form, since neither the entry nor the model has a template."""
        try:
            self._parser: type[Parser] | None = ParserManager.get_parser(
                tool_parser_name=spec.tool_parser,
                enable_auto_tools=spec.tool_parser is not None,
                model_name=self._model.model,
                tokenizer=renderer.tokenizer,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, ImportError) as error:
            raise InvalidArgument(
                f"vLLM cannot read tool calls with '{spec.tool_parser}': {_sentence(error)}",
                field=f"{path}.tool_parser",
            ) from error

    def refuse_what_cannot_be(self, request: Generation) -> None:
        """Raises InvalidArgument for what this engine cannot do, before the request waits for anything."""
        if request.tools and request.tool_choice.mode != "none" and self._parser is None:
            raise InvalidArgument(
                f"The model '{request.model}' has no tool parser; set tool_parser of its engine in factory.yaml.",
                field="tools",
            )
        if request.tools and request.tool_choice.mode in ("required", "named") and request.output_format.kind != "text":
            raise InvalidArgument(
                "A request either must call a tool or has an output format, not both.", field="output_format"
            )

    async def prepare(self, request: Generation) -> EngineRequest:
        """The request in vLLM's terms. Raises InvalidArgument, ContextTooLong."""
        salt = request.tenant if self._spec.prefix_cache == "tenant" else ""
        extras = {"cache_salt": salt} if salt else {}
        tools = self._tool_reading(request)
        try:
            if request.prompt is not None:
                (prompt,) = await self._renderer.render_cmpl_async([{"prompt": request.prompt}], prompt_extras=extras)
            else:
                messages = [_message(message) for message in request.messages]
                _, (prompt,) = await self._renderer.render_chat_async(
                    [messages], self._chat_params(request), prompt_extras=extras
                )
        except VLLMValidationError as error:
            raise self._refused(request, error) from error
        except (VLLMClientError, jinja2.TemplateError, ValueError, TypeError) as error:
            raise InvalidArgument(
                f"The model's chat template refuses the messages: {_sentence(error)}", field="messages"
            ) from error
        prompt_tokens = len(prompt["prompt_token_ids"])
        if prompt_tokens >= self._model.max_model_len:
            raise self.too_long(request, f"{prompt_tokens} tokens")
        return EngineRequest(prompt, prompt_tokens, self._sampling(request, prompt_tokens, tools), tools)

    async def check_chat(self, *, path: str) -> None:
        """Renders a short conversation. Raises InvalidArgument when the chat template refuses any.

        path: of the entry in factory.yaml.
        """
        question = Generation(self._spec.model, messages=(Message(Role.USER, "Hello"),))
        try:
            await self.prepare(question)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"The model cannot be asked anything: {error.message} Set {path}.chat_template to a Jinja template "
                "that takes messages with role and content.",
                field=f"{path}.chat_template",
            ) from error

    def too_long(self, request: Generation, size: str) -> ContextTooLong:
        """The error for a prompt that leaves no room for an answer."""
        return ContextTooLong(
            f"The prompt has {size}; the model '{request.model}' has a context of {self._model.max_model_len} tokens "
            "for prompt and answer together.",
            field="prompt" if request.prompt is not None else "messages",
        )

    def _refused(self, request: Generation, error: VLLMValidationError) -> FactoryError:
        if error.parameter in ("input_tokens", "input_text"):
            return self.too_long(request, f"at least {error.value} {error.parameter.removeprefix('input_')}")
        field = "prompt" if request.prompt is not None else "messages"
        return InvalidArgument(f"The prompt cannot be read: {_sentence(error)}", field=field)

    def _chat_params(self, request: Generation) -> ChatParams:
        kwargs: dict[str, Any] = {
            **request.chat_template_kwargs,
            "add_generation_prompt": not request.continue_final_message,
            "continue_final_message": request.continue_final_message,
            "tokenize": False,
        }
        if request.documents:
            kwargs["documents"] = [{"title": document.title, "text": document.text} for document in request.documents]
        if request.tools and request.tool_choice.mode != "none":
            kwargs["tools"] = [_tool(tool, strict=tool.strict) for tool in request.tools]
        template = plain_chat.TEMPLATE if self.plain else self._spec.chat_template
        return ChatParams(chat_template=template, chat_template_kwargs=kwargs)

    def _tool_reading(self, request: Generation) -> ToolReading | None:
        if not request.tools or request.tool_choice.mode == "none" or self._parser is None:
            return None
        choice: Any = request.tool_choice.mode
        forced = choice in ("required", "named")  # what is written must be a call, so it can as well be a valid one
        if choice == "named":
            choice = {"type": "function", "function": {"name": request.tool_choice.name}}
        wanted = ChatCompletionRequest(
            model=request.model,
            messages=[_message(message) for message in request.messages] or [{"role": "user", "content": "-"}],
            tools=[_tool(tool, strict=forced or tool.strict) for tool in request.tools],
            tool_choice=choice,
        )
        parser_class = self._parser

        def make() -> Parser:
            return parser_class(
                self._renderer.tokenizer, wanted.tools, model_config=self._model, chat_template_kwargs={}
            )

        adjusted: ChatCompletionRequest = make().adjust_request(wanted)
        return ToolReading(adjusted, _tight(adjusted.extract_structured_outputs()), make)

    def _sampling(self, request: Generation, prompt_tokens: int, tools: ToolReading | None) -> SamplingParams:
        wanted = request.sampling
        chosen = {
            name: value
            for name in (
                "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
            )
            if (value := getattr(wanted, name)) is not None
        }  # fmt: skip
        room = self._model.max_model_len - prompt_tokens
        asked = wanted.max_tokens if wanted.max_tokens is not None else self._max_tokens
        structured = _structured(request.output_format)
        if tools is not None and structured is None:
            structured = tools.structured
        return SamplingParams.from_optional(
            **{**self._defaults, **chosen},
            n=wanted.n,
            seed=wanted.seed,
            stop=[*wanted.stop, *(plain_chat.STOP if self.plain and request.prompt is None else ())],
            stop_token_ids=self._stop_token_ids,
            max_tokens=room if asked is None else min(asked, room),
            logprobs=wanted.top_logprobs if wanted.logprobs else None,
            skip_special_tokens=tools.request.skip_special_tokens if tools is not None else True,
            structured_outputs=structured,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,  # made for this request alone
        )


def _has_chat_template(renderer: BaseRenderer, model: ModelConfig) -> bool:
    """As vLLM looks for one: in the processor, in the tokenizer, in its own list by the model's type."""
    if not isinstance(renderer, HfRenderer):
        return True  # tokenizers of other kinds write conversations themselves
    return resolve_chat_template(renderer.get_tokenizer(), None, None, model_config=model) is not None


def refused(error: VLLMClientError | ValueError, request: Generation) -> InvalidArgument:
    """Our error for vLLM's refusal of a request."""
    kind = request.output_format.kind
    if kind != "text":
        field = "output_format.choice.values" if kind == "choice" else f"output_format.{kind}"
        return InvalidArgument(f"The output format cannot be kept to: {_sentence(error)}", field=field)
    if request.tools and request.tool_choice.mode != "none":
        return InvalidArgument(f"The tools cannot be called so: {_sentence(error)}", field="tools")
    return InvalidArgument(f"vLLM refuses the request: {_sentence(error)}", field="sampling")


def _structured(output: OutputFormat) -> StructuredOutputsParams | None:
    match output.kind:
        case "text":
            return None
        case "json_schema":
            return StructuredOutputsParams(json=dict(output.json_schema or {}))
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "regex":
            return StructuredOutputsParams(regex=output.pattern)
        case "choice":
            return StructuredOutputsParams(choice=list(output.choices))
        case "grammar":
            return StructuredOutputsParams(grammar=output.pattern)


def _tight(params: StructuredOutputsParams | None) -> StructuredOutputsParams | None:
    """With little white space in the arguments of calls, as elsewhere in JSON (see vllm_arguments)."""
    if params is None or params.structural_tag is None:
        return params
    tag = json.loads(params.structural_tag)

    def bound(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("type") == "json_schema" and "json_schema" in value:
                value["max_whitespace_cnt"] = value.get("max_whitespace_cnt") or 1
                return
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                bound(each)

    bound(tag)
    return StructuredOutputsParams(structural_tag=json.dumps(tag))


def _message(message: Message) -> dict[str, Any]:
    """As OpenAI's API writes it."""
    written: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.name:
        written["name"] = message.name
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json or "{}"},
            }
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        written["tool_call_id"] = message.tool_call_id
    return written


def _tool(tool: Tool, *, strict: bool) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": json.loads(json.dumps(dict(tool.parameters) or {"type": "object", "properties": {}})),
    }
    if strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _sentence(error: Exception) -> str:
    """The first line of an error, short enough for a caller."""
    arguments: Sequence[object] = error.args
    text = str(arguments[0]) if arguments else type(error).__name__
    line = next((line for line in text.splitlines() if line.strip()), type(error).__name__).strip()
    return line if len(line) <= 300 else line[:299] + "…"
