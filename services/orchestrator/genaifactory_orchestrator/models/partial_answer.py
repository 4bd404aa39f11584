"""One growing answer, across the models that write it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from genaifactory.types.v1 import types_pb2
from genaifactory_common.conversation import estimated_prompt_tokens, estimated_tokens
from genaifactory_orchestrator.models.attempts import Attempt, Try
from genaifactory_orchestrator.models.backend import (
    ChoiceFinished,
    Delta,
    Piece,
    Prompt,
    ToolCallDelta,
    Usage,
)
from genaifactory_orchestrator.models.continuation import OverlapTrimmer


@dataclass(frozen=True)
class Started:
    """A model begins to answer; repeated when a fallback continues the answer."""

    model: str


@dataclass(frozen=True)
class Finished:
    """The answer is complete; the last event."""

    finish_reasons: tuple[types_pb2.FinishReason.ValueType, ...]
    """One for each choice."""
    usage: Usage
    """Of all attempts together."""
    model: str
    """The model that finished the answer."""


Event = Started | Delta | ToolCallDelta | Finished


class Draft:
    """The answer so far, and what is left to generate."""

    def __init__(self, prompt: Prompt, attempts: list[Attempt]) -> None:
        self.attempts = attempts
        self.usage = Usage()
        self.events = 0
        """Number of pieces of text and tool calls sent to the caller."""
        self.model = ""
        """The last model that wrote something."""
        self._prompt = prompt
        self._texts: list[str] = []
        self._tool_calls = False
        self._finish_reasons: dict[int, types_pb2.FinishReason.ValueType] = {}

    @property
    def begun(self) -> bool:
        """Whether the caller has received any of it."""
        return self.events > 0

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return len(self._finish_reasons) >= self._prompt.choices

    @property
    def text(self) -> str:
        """All text so far, of all choices; only useful with one choice."""
        return "".join(self._texts)

    def obstacle(self) -> str | None:
        """Why another model cannot continue it; None if it can."""
        if not self.begun:
            return None
        if self._prompt.choices > 1:
            return "several answers at once"
        if self._tool_calls:
            return "a tool call"
        if self._prompt.output_format is not None and self._prompt.output_format.WhichOneof("constraint"):
            return "an answer of a given form"  # constrained decoding begins at the start of its grammar
        return None

    def remaining_prompt(self) -> Prompt:
        """The prompt for the rest of the answer, with max_tokens reduced by the used ones."""
        sampling = self._prompt.sampling
        if not self.begun or not sampling.HasField("max_tokens"):
            return self._prompt
        rest = types_pb2.Sampling()
        rest.CopyFrom(sampling)
        rest.max_tokens = max(1, sampling.max_tokens - self.usage.completion_tokens)
        return replace(self._prompt, sampling=rest)

    def end_if_used_up(self) -> None:
        """Ends the answer when max_tokens are used up."""
        sampling = self._prompt.sampling
        if self.begun and sampling.HasField("max_tokens") and self.usage.completion_tokens >= sampling.max_tokens:
            self._finish_reasons.setdefault(0, types_pb2.FINISH_REASON_LENGTH)

    def finished(self) -> Finished:
        """The last event of a complete answer."""
        reasons = tuple(self._finish_reasons[choice] for choice in sorted(self._finish_reasons))
        return Finished(reasons, self.usage, self.model)

    def part(self, this: Try, model: str, *, continues_exactly: bool) -> Part:
        """Begins the part of one attempt."""
        return Part(self, this, model, continues_exactly)


class Part:
    """The part of an answer that one attempt writes."""

    def __init__(self, draft: Draft, this: Try, model: str, continues_exactly: bool) -> None:
        self.prefix = draft.text
        """The text that it continues."""
        self._draft = draft
        self._this = this
        self._model = model
        self._trimmer = None if continues_exactly or not self.prefix else OverlapTrimmer(self.prefix)
        self._held_logprobs: list[types_pb2.TokenLogprob] = []
        self._generated: list[str] = []
        self._usage: Usage | None = None
        self._begun = False

    def feed(self, piece: Piece) -> list[Event]:
        """The caller's events for a piece of the backend's stream."""
        if type(piece) is Delta:
            self._generated.append(piece.text)
            if self._trimmer is None:
                return self._given(piece)
            self._held_logprobs += piece.logprobs
            return self._released(self._trimmer.feed(piece.text))
        if type(piece) is ToolCallDelta:
            self._generated += (piece.tool_call.name, piece.tool_call.arguments_json)
            self._draft._tool_calls = True
            return self._given(piece)
        if type(piece) is Usage:
            self._usage = piece
        elif type(piece) is ChoiceFinished:
            self._draft._finish_reasons.setdefault(piece.choice, piece.reason)
            self._draft.model = self._model
        return []

    def end(self) -> list[Event]:
        """The events for text that was held back as a possible repetition."""
        return [] if self._trimmer is None else self._released(self._trimmer.finish())

    def settle(self) -> None:
        """Sets its usage; estimates it when the backend did not report any."""
        usage = self._usage
        if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
            usage = self._estimate() if self._generated or self._draft.complete else Usage()
        self._this.usage = usage
        self._draft.usage += usage
        reasons = self._draft._finish_reasons.values()
        self._this.finish_reasons = tuple(
            types_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower() for reason in reasons
        )

    def _given(self, event: Delta | ToolCallDelta) -> list[Event]:
        draft = self._draft
        draft.events += 1
        if type(event) is Delta:
            draft._texts.append(event.text)
        if self._begun:
            return [event]
        self._begun = True
        self._this.first_token()
        draft.model = self._model
        return [Started(self._model), event]

    def _released(self, text: str) -> list[Event]:
        if not text:
            return []
        # The tokens of the released end of the held text, with one that was cut in two.
        logprobs: list[types_pb2.TokenLogprob] = []
        covered = 0
        while self._held_logprobs and covered < len(text):
            logprobs.append(self._held_logprobs.pop())
            covered += len(logprobs[-1].token)
        self._held_logprobs.clear()
        return self._given(Delta(text, 0, tuple(reversed(logprobs))))

    def _estimate(self) -> Usage:
        prompt = self._draft._prompt
        read = estimated_prompt_tokens(prompt.messages, prompt.tools, prompt.output_format)
        read += estimated_tokens("".join((self.prefix, *(document.text for document in prompt.documents))))
        return Usage(read, estimated_tokens("".join(self._generated)), estimated=True)
