"""One choice of an answer, on its way from the model through the guardrail to the client."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_common.errors import UpstreamFailed
from genaifactory_orchestrator.answers.citations import MarkFilter
from genaifactory_orchestrator.answers.guardrail import Guard, GuardedStream
from genaifactory_orchestrator.models.backend import Delta, ToolCallDelta

CONTENT_FILTER = types_pb2.FINISH_REASON_CONTENT_FILTER

_MAX_TOOL_CHARACTERS = 1_000_000
# The model also writes a call's id; one of another form is replaced, so that no text bypasses the guardrail in it.
_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Choice:
    """Collects a model's pieces (`feed`, `feed_tool_call`, `end`) and the text that the guardrail released."""

    def __init__(self, number: int, stream: GuardedStream, *, passages: int | None, logprobs: bool) -> None:
        """passages: the number of passages that marks may name; None: marks are left unchanged."""
        self.number = number
        self.stream = stream
        self.released: list[str] = []
        self.finish_reason: types_pb2.FinishReason.ValueType = types_pb2.FINISH_REASON_UNSPECIFIED
        self.tool_calls: dict[int, types_pb2.ToolCall] = {}
        self.tool_verdicts: list[types_pb2.Verdict] = []
        self._tool_characters = 0
        self._marks = MarkFilter(passages) if passages is not None else None
        self._tokens = _Tokens() if logprobs else None

    @property
    def text(self) -> str:
        """The text released so far."""
        return "".join(self.released)

    @property
    def blocked(self) -> bool:
        """Whether the guardrail has ended this choice."""
        return self.finish_reason == CONTENT_FILTER

    async def feed(self, delta: Delta) -> None:
        """Adds the model's next piece; waits while the guardrail is behind."""
        if self._tokens is not None:
            self._tokens.add(delta)
        text = self._marks.feed(delta.text) if self._marks else delta.text
        if text:
            await self.stream.feed(text)

    def feed_tool_call(self, delta: ToolCallDelta) -> None:
        """Adds the next piece of a tool call, which is held until it is complete: a part of it cannot be scanned.

        Raises UpstreamFailed when it exceeds the bound.
        """
        piece = delta.tool_call
        self._tool_characters += len(piece.arguments_json) + 1
        if self._tool_characters > _MAX_TOOL_CHARACTERS:
            raise UpstreamFailed(f"The model wrote tool calls of more than {_MAX_TOOL_CHARACTERS} characters.")
        call = self.tool_calls.setdefault(piece.index, types_pb2.ToolCall(index=piece.index))
        call.id = call.id or piece.id
        call.name = call.name or piece.name
        call.arguments_json += piece.arguments_json

    async def end(self, reason: types_pb2.FinishReason.ValueType) -> None:
        """Ends this choice for the model."""
        if self._marks and (rest := self._marks.end()):
            await self.stream.feed(rest)
        if not self.blocked:
            self.finish_reason = reason
        self.stream.end()

    def release(self, text: str) -> Delta:
        """The event for text that the guardrail released."""
        self.released.append(text)
        logprobs = self._tokens.released(text) if self._tokens is not None else ()
        return Delta(text, self.number, logprobs)

    def block(self) -> None:
        """Ends this choice for the guardrail."""
        self.finish_reason = CONTENT_FILTER
        self.tool_calls.clear()

    def message(self) -> types_pb2.Message:
        """What was released, as a message of the conversation."""
        calls = [call for _, call in sorted(self.tool_calls.items())]
        return types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=self.text, tool_calls=calls)

    async def checked_tool_calls(
        self, guard: Guard, policy: specs.Policy, offered: frozenset[str]
    ) -> list[ToolCallDelta]:
        """The events for the choice's tool calls, each scanned as a whole; a block ends the choice.

        Raises UpstreamFailed when the model calls a tool that was not offered, Unavailable when the scan cannot run.
        """
        events = []
        for index, call in sorted(self.tool_calls.items()):
            if call.name not in offered:
                raise UpstreamFailed("The model called a tool that was not offered to it.")
            verdict, arguments = await guard.check_output(call.arguments_json, policy)
            self.tool_verdicts.append(verdict)
            if verdict.action == types_pb2.ACTION_BLOCK or (
                arguments != call.arguments_json and not _is_json(arguments)
            ):
                self.block()
                return []
            identifier = call.id if _CALL_ID.fullmatch(call.id) else f"call_{self.number}_{index}"
            checked = types_pb2.ToolCall(id=identifier, name=call.name, arguments_json=arguments, index=index)
            self.tool_calls[index] = checked
            events.append(ToolCallDelta(checked, self.number))
        return events


@dataclass
class _Tokens:
    """Tokens whose text is not released yet. Once released text differs from the model's, no more are returned."""

    _waiting: deque[tuple[int, types_pb2.TokenLogprob]] = field(default_factory=deque)
    _written: str = ""
    _position: int = 0
    _same: bool = True

    def add(self, delta: Delta) -> None:
        """Adds a piece of the model's text."""
        if not self._same:
            return
        self._written += delta.text
        end = self._position + len(self._written)
        self._waiting += [(end, token) for token in delta.logprobs]

    def released(self, text: str) -> tuple[types_pb2.TokenLogprob, ...]:
        """The tokens of released text."""
        if not self._same or not self._written.startswith(text):
            self._same = False
            self._waiting.clear()
            self._written = ""
            return ()
        self._written = self._written[len(text) :]
        self._position += len(text)
        tokens = []
        while self._waiting and self._waiting[0][0] <= self._position:
            tokens.append(self._waiting.popleft()[1])
        return tuple(tokens)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
