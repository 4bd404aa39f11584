"""What vLLM puts out, as steps: one for each choice and engine step, however many tokens the step brought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parser import Parser

from genaifactory_common.errors import Unavailable
from genaifactory_modelserver.engines.protocol import FinishReason, Step, TokenLogprob, ToolCall, Usage
from genaifactory_modelserver.engines.vllm.requests import EngineRequest

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "repetition": FinishReason.STOP,
}


class Reading:
    """Reads the outputs of one request, in their order."""

    def __init__(self, prepared: EngineRequest, *, n: int, top_logprobs: int | None) -> None:
        """top_logprobs: alternatives wanted for each token; None: no log probabilities at all."""
        self._prepared = prepared
        self._n = n
        self._top_logprobs = top_logprobs
        self._parsers: dict[int, Parser] = {}
        self._called: set[int] = set()
        self._completion_tokens = 0
        self._finished = 0

    def steps(self, output: RequestOutput) -> Iterator[Step]:
        """The steps of one output. Raises Unavailable when the engine gave the request up."""
        for choice in output.outputs:
            self._completion_tokens += len(choice.token_ids)
            finish_reason = None
            if choice.finish_reason is not None:
                finish_reason = self._finish_reason(choice)
                self._finished += 1
            delta: str = choice.text
            tool_calls: tuple[ToolCall, ...] = ()
            if self._prepared.tools is not None:
                delta, tool_calls = self._read_tools(choice)
                if finish_reason is FinishReason.STOP and choice.index in self._called:
                    finish_reason = FinishReason.TOOL_CALLS
            usage = None
            if self._finished == self._n and finish_reason is not None:
                usage = Usage(self._prepared.prompt_tokens, self._completion_tokens, output.num_cached_tokens or 0)
            logprobs = self._logprobs(choice) if self._top_logprobs is not None else ()
            if delta or tool_calls or logprobs or finish_reason is not None:
                yield Step(delta, choice.index, tool_calls, logprobs, finish_reason, usage)

    def _finish_reason(self, choice: CompletionOutput) -> FinishReason:
        reason = _FINISH_REASONS.get(str(choice.finish_reason))
        if reason is None:  # abort, error
            raise Unavailable("The engine gave the request up; try again.", retry_after_seconds=1.0)
        return reason

    def _read_tools(self, choice: CompletionOutput) -> tuple[str, tuple[ToolCall, ...]]:
        tools = self._prepared.tools
        assert tools is not None
        parser = self._parsers.get(choice.index)
        if parser is None:
            parser = self._parsers[choice.index] = tools.make()
        message: Any = parser.parse_delta(
            choice.text,
            list(choice.token_ids),
            tools.request,
            self._prepared.prompt["prompt_token_ids"],
            finished=choice.finish_reason is not None,
        )
        if message is None:
            return "", ()
        calls = tuple(
            ToolCall(
                call.id or "",
                (call.function.name or "") if call.function else "",
                (call.function.arguments or "") if call.function else "",
                call.index,
            )
            for call in message.tool_calls or ()
        )
        if calls:
            self._called.add(choice.index)
        return message.content or "", calls

    def _logprobs(self, choice: CompletionOutput) -> tuple[TokenLogprob, ...]:
        found = []
        for token_id, candidates in zip(choice.token_ids, choice.logprobs or (), strict=False):
            best = sorted(candidates.values(), key=lambda each: each.rank or 0)[: self._top_logprobs]
            chosen = candidates[token_id]
            found.append(TokenLogprob(chosen.decoded_token or "", chosen.logprob, tuple(_alternatives(best))))
        return tuple(found)


def _alternatives(candidates: Sequence[Any]) -> Iterator[TokenLogprob]:
    for candidate in candidates:
        yield TokenLogprob(candidate.decoded_token or "", candidate.logprob)
