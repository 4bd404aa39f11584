"""The scripted engine: public test tooling: a model whose outputs a test defines.

Without a script it echoes the last user message, word by word, after "echo:". A script is a list of rules; the first
rule that fits a request, and is not used up, decides. In process:

    engine = FakeEngine(rules=[Rule(contains="boom", pieces=("one ", "two "), error=Failure(reason="UNAVAILABLE"))])

In a process of its own, an engine of factory.yaml names a JSON file of the same fields:

    {"rules": [
      {"model": "fake", "contains": "boom", "times": 2, "pieces": ["one ", "two "], "first_delay_seconds": 0.2,
       "delay_seconds": 0.05, "error": {"reason": "OVERLOADED", "message": "full", "retry_after_seconds": 1}},
      {"contains": "hang", "pieces": ["I am thinking "], "hang": true},
      {"contains": "rain", "tool_calls": [{"id": "c1", "name": "weather", "arguments": ["{\\"at\\":", "\\"Huế\\"}"]}]}
    ]}

A piece is a token: max_tokens ends the output after so many pieces and usage counts them, unless the rule sets
otherwise. Stop texts end it too, when they lie within one piece. `seen`, `running` and `cancelled` count requests.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genaifactory_common import specs
from genaifactory_common.engine_specs import Fake
from genaifactory_common.errors import TABLE, FactoryError, InvalidArgument, Reason
from genaifactory_modelserver.engines.protocol import (
    FinishReason,
    Generation,
    Model,
    Role,
    Step,
    TokenLogprob,
    ToolCall,
    Usage,
)
from genaifactory_modelserver.settings import Settings

_SEEN = 1_000
_LOGPROB = -0.25


class _Script(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(_Script):
    """An error to raise."""

    reason: Reason = Reason.UNAVAILABLE
    message: str = "The script says so."
    retry_after_seconds: float | None = None


class ScriptedToolCall(_Script):
    """A tool call, its arguments streamed in these pieces."""

    id: str
    name: str
    arguments: tuple[str, ...] = ("{}",)


class ScriptedUsage(_Script):
    """Usage to report instead of the counted one."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0


class Rule(_Script):
    """Which requests, and what to do with them."""

    model: str | None = Field(default=None, description="Requests for this model; None: for any.")
    contains: str = Field(default="", description="Requests whose last message (or prompt) holds this text.")
    times: int | None = Field(default=None, ge=1, description="Used so often, then passed over; None: always.")
    pieces: tuple[str, ...] | None = Field(default=None, description="The output; None: the echo.")
    repeat: int = Field(default=1, ge=0, description="How often it is repeated.")
    first_delay_seconds: float = Field(default=0.0, ge=0, description="Before the first piece.")
    delay_seconds: float = Field(default=0.0, ge=0, description="Before every further piece.")
    error: Annotated[Failure | None, Field(description="Raised after the pieces.")] = None
    hang: bool = Field(default=False, description="Say the pieces, then nothing, until cancelled.")
    tool_calls: tuple[ScriptedToolCall, ...] = Field(default=(), description="Asked for after the pieces.")
    finish_reason: FinishReason | None = Field(default=None, description="None: stop, length or tool_calls, as it was.")
    usage: ScriptedUsage | None = None


class Script(_Script):
    """A script file."""

    rules: tuple[Rule, ...] = ()


def make(spec: Fake, settings: Settings, source: specs.Source) -> FakeEngine:
    """The engine of an entry."""
    script_file = Path(spec.script_file) if spec.script_file is not None else None
    return FakeEngine(models=spec.models, script_file=script_file)


class FakeEngine:
    """Applies the first rule that matches."""

    name = "fake"
    activity = "It is being loaded."

    def __init__(
        self, *, models: Sequence[str] = ("fake",), rules: Sequence[Rule] = (), script_file: Path | None = None
    ) -> None:
        """script_file: read by `open`; its rules come after `rules`."""
        self._models = tuple(Model(name) for name in models)
        self._rules = list(rules)
        self._used: Counter[int] = Counter()
        self._script_file = script_file
        self.seen: deque[Generation] = deque(maxlen=_SEEN)
        """The last requests, oldest first."""
        self.running = 0
        """Generations that go on now."""
        self.cancelled = 0
        """Generations that were stopped before their end."""
        self.closed = False
        """Whether it was closed."""

    async def open(self) -> None:
        """Reads the script. Raises InvalidArgument with the path of the bad field."""
        if self._script_file is not None:
            script = await asyncio.to_thread(_load, self._script_file)
            self._rules += script.rules

    async def close(self) -> None:
        """Remembers that it was."""
        self.closed = True

    def ready(self) -> bool:
        """Until closed."""
        return not self.closed

    def alive(self) -> bool:
        """Until closed."""
        return not self.closed

    def models(self) -> Sequence[Model]:
        """The names from the settings."""
        return self._models

    def serves(self, name: str) -> bool:
        """The names from the settings."""
        return any(model.name == name for model in self._models)

    def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates as scripted; n choices have the same text, interleaved."""
        self.seen.append(request)
        return self._generate(request, self._take(request))

    async def _generate(self, request: Generation, rule: Rule) -> AsyncGenerator[Step, None]:
        sampling = request.sampling
        said, said_tokens, finish_reason = 0, 0, FinishReason.STOP
        self.running += 1
        try:
            for text in itertools.chain.from_iterable(itertools.repeat(_pieces(rule, request), rule.repeat)):
                if said == sampling.max_tokens:
                    finish_reason = FinishReason.LENGTH
                    break
                await asyncio.sleep(rule.delay_seconds if said else rule.first_delay_seconds)
                cut = _cut(text, sampling.stop)
                said += 1
                for choice in range(sampling.n):
                    said_tokens += 1
                    yield Step(cut, choice, logprobs=_logprobs(cut, sampling.top_logprobs) if sampling.logprobs else ())
                if cut != text:
                    break
            if not said:
                await asyncio.sleep(rule.first_delay_seconds)
            if rule.hang:
                await asyncio.get_running_loop().create_future()
            if rule.error is not None:
                raise _error(rule.error)
            for step in _tool_calls(rule, sampling.n):
                finish_reason = FinishReason.TOOL_CALLS
                yield step
            usage = Usage(_prompt_tokens(request), said_tokens)
            if rule.usage is not None:
                usage = Usage(**rule.usage.model_dump())
            for choice in range(sampling.n):
                last = choice == sampling.n - 1
                yield Step("", choice, finish_reason=rule.finish_reason or finish_reason, usage=usage if last else None)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def _take(self, request: Generation) -> Rule:
        text = request.messages[-1].content if request.messages else request.prompt or ""
        for number, rule in enumerate(self._rules):
            used_up = rule.times is not None and self._used[number] >= rule.times
            if rule.model in (None, request.model) and rule.contains in text and not used_up:
                self._used[number] += 1
                return rule
        return Rule()


def _load(path: Path) -> Script:
    try:
        return Script.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"The script {path} cannot be read: {error.strerror}.", field="script_file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise InvalidArgument(f"The script {path} is wrong at {where}: {first['msg']}.", field=where) from None


def _pieces(rule: Rule, request: Generation) -> tuple[str, ...]:
    if rule.pieces is not None:
        return rule.pieces
    asked = next((m.content for m in reversed(request.messages) if m.role is Role.USER), request.prompt or "")
    return tuple(re.findall(r"\s*\S+", f"echo: {asked}"))


def _cut(text: str, stops: Sequence[str]) -> str:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _logprobs(token: str, top: int) -> tuple[TokenLogprob, ...]:
    alternatives = tuple(TokenLogprob(f"{token}~{i}" if i else token, _LOGPROB * (i + 1)) for i in range(top))
    return (TokenLogprob(token, _LOGPROB, alternatives),)


def _tool_calls(rule: Rule, n: int) -> Iterator[Step]:
    for index, call in enumerate(rule.tool_calls):
        for part, arguments in enumerate(call.arguments):
            piece = ToolCall("" if part else call.id, "" if part else call.name, arguments, index)
            for choice in range(n):
                yield Step(choice=choice, tool_calls=(piece,))


def _error(failure: Failure) -> FactoryError:
    kind = TABLE[failure.reason].error
    return kind(failure.message, reason=failure.reason, retry_after_seconds=failure.retry_after_seconds)


def _prompt_tokens(request: Generation) -> int:
    texts = [message.content for message in request.messages] + [d.text for d in request.documents]
    return sum(len(text.split()) for text in [*texts, request.prompt or ""])
