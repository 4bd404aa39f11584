"""What an engine is: the protocols that every engine follows, and the values that go in and out.

    Engine              opens, closes, reports whether it is ready and what it serves
    ├── Generator       an engine whose models generate text
    ├── Embedder        an engine whose models embed texts
    ├── AdapterHolder   an engine that loads LoRA adapters while it serves
    └── Sleeper         an engine that can release its accelerator's memory and allocate it again

An engine gets requests whose every field is in range (`validation`) and whose model is its own (`serving`). What it
cannot do it refuses with InvalidArgument that names the field. Engines do not depend on gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Role(StrEnum):
    """Who wrote a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class FinishReason(StrEnum):
    """Why a model stopped, as OpenAI's API writes it."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Priority(IntEnum):
    """Who goes first when the engine is busy; smaller goes first."""

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, or, while streaming, the next piece of it."""

    id: str
    name: str
    arguments_json: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class GroundingPassage:
    """A passage to ground an answer in."""

    text: str
    title: str = ""
    headings: tuple[str, ...] = ()
    language: str = ""
    """BCP 47; empty when unknown."""
    starts_inside: bool = False
    """Whether it was cut out of a longer text, so that its first sentence may be a fragment."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments."""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether and which tool has to be called."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""
    """The tool, with mode "named"."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The form that the output must have."""

    kind: Literal["text", "json_schema", "json_object", "regex", "choice", "grammar"] = "text"
    json_schema: Mapping[str, Any] | None = None
    pattern: str = ""
    """The regular expression, or the EBNF grammar."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; None is the model's default. Ranges: types.v1.Sampling."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate from. Either `messages` or `prompt` is set."""

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    """Taken as it is, without a chat template."""
    continue_final_message: bool = False
    """The last message is the beginning of the answer."""
    documents: tuple[GroundingPassage, ...] = ()
    chat_template_kwargs: Mapping[str, str | bool | float | int] = field(default_factory=dict)
    """Variables of the chat template, for an engine that has one."""
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    output_format: OutputFormat = field(default_factory=OutputFormat)
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    """Whose request it is: bounds and caches are the tenant's own."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, in the model's own count."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability, and the likeliest alternatives, best first."""

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The output of one engine step for one choice."""

    delta: str = ""
    choice: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Set in the last step of a choice."""
    usage: Usage | None = None
    """Set in the last step of all."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in the order of the texts, shape (texts, dimensions), and the tokens read."""

    vectors: NDArray[np.float32]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model or an adapter that an engine serves."""

    name: str
    context_tokens: int = 0
    """Longest prompt and output together; 0: not bounded."""
    base_model: str = ""
    """Name of the base model of an adapter."""
    embedding_dimensions: int = 0
    """Components of a vector; 0: the model generates."""
    note: str = ""
    """A warning about its answers for people; mostly empty."""


class Engine(Protocol):
    """Holds models. What it serves may change while it is open (adapters)."""

    name: str
    """The kind of engine: the `type` of its entry in factory.yaml."""
    activity: str
    """What `open` is doing, for a person who waits."""

    async def open(self) -> None:
        """Loads and warms up; when it returns, requests may come. Raises FactoryError; `close` follows in any case."""

    async def close(self) -> None:
        """Lets go of everything. No request runs any more."""

    def ready(self) -> bool:
        """Whether it can serve now. Asked often: cheap, never blocks."""

    def alive(self) -> bool:
        """False once it has died and only a new start can help. Asked often: cheap, never blocks."""

    def models(self) -> Sequence[Model]:
        """What it serves, or will once it is open."""

    def serves(self, name: str) -> bool:
        """Whether `name` is a model or adapter of its own. Asked for every request: cheap, never blocks."""


@runtime_checkable
class Generator(Engine, Protocol):
    """An engine whose models generate text."""

    def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates. Closing the iterator, or cancelling the task that iterates, stops the work at once.

        The last step of every choice has a finish_reason; the last step of all has the usage.
        Raises InvalidArgument at the call for what the engine cannot do; while iterating ContextTooLong and whatever
        else goes wrong, always as FactoryError.
        """


@runtime_checkable
class Embedder(Engine, Protocol):
    """An engine whose models embed texts."""

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds. Cancelling the task stops the work as soon as the texts in hand are done."""


@runtime_checkable
class AdapterHolder(Engine, Protocol):
    """An engine that loads LoRA adapters while it serves."""

    async def load_adapter(self, name: str, source_uri: str, sha256: str) -> Model:
        """Verifies the adapter and serves it; an adapter that is served from the same source stays as it is.

        sha256: of its weights, hex; empty: that of its metadata.json. Raises FactoryError, and then nothing is changed.
        """

    async def knows(self, name: str) -> bool:
        """Whether an adapter that it does not serve yet was loaded through another replica; if so, it does now."""

    async def unload_adapter(self, name: str) -> None:
        """Serves it no more; requests that use it finish first. An unknown adapter is no error."""


@runtime_checkable
class Sleeper(Engine, Protocol):
    """An engine that can release its accelerator's memory and allocate it again."""

    async def sleep(self) -> None:
        """Finishes what runs, and lets the memory go; it is not ready until `wake`. Raises Unimplemented."""

    async def wake(self) -> None:
        """Takes the memory back; serves when it returns. Raises Unimplemented."""
