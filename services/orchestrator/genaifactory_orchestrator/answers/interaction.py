"""The notes on an answer in progress, and the Interaction that is recorded from them at any end of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf import timestamp_pb2

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import images, telemetry
from genaifactory_common.errors import Cancelled, ContentBlocked, FactoryError, Internal
from genaifactory_common.identity import Caller
from genaifactory_orchestrator.answers.choice import Choice
from genaifactory_orchestrator.answers.events import Done
from genaifactory_orchestrator.answers.guardrail import InputBlocked
from genaifactory_orchestrator.answers.retrieval import NOTHING, RetrievedPassages
from genaifactory_orchestrator.models.attempts import Attempt
from genaifactory_orchestrator.models.backend import Delta, Usage
from genaifactory_orchestrator.models.pricing import Cost, total

# Keeps a record far below the bound of a gRPC message; the oldest messages are left out.
_MAX_TEXT_CHARACTERS = 1_000_000


@dataclass
class Record:
    """Notes on one request. They hold only text that the guardrails have passed."""

    request_id: str
    caller: Caller
    task: str
    route: str = ""
    model: str = ""
    user: str = ""
    conversation_id: str = ""
    prompt_version: str = ""
    evaluation: str = ""
    adapter: str = ""
    split: str = ""
    arm: str = ""
    arm_chosen: bool = False
    wanted: int = 1
    """Number of choices asked for."""
    messages: tuple[types_pb2.Message, ...] = ()
    """After the input check; empty before it."""
    input_verdicts: tuple[types_pb2.Verdict, ...] = ()
    found: RetrievedPassages = NOTHING
    choices: Sequence[Choice] = ()
    """Of the model's last turn."""
    earlier: tuple[Choice, ...] = ()
    """Of the turns before it."""
    said: str = ""
    """An answer that no model wrote: from the cache, or a refusal."""
    said_verdicts: tuple[types_pb2.Verdict, ...] = ()
    """Verdicts on `said`, and those of a task itself."""
    attempts: list[Attempt] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    started_at: float = field(default_factory=time.time)
    first_text_seconds: float | None = None

    @property
    def asked(self) -> str:
        """The question: the last message of the user."""
        return next((m.content for m in reversed(self.messages) if m.role == types_pb2.ROLE_USER), "")

    def begin_turn(self, choices: Sequence[Choice]) -> None:
        """Begins a turn of a model."""
        self.earlier += tuple(self.choices)
        self.choices = choices

    def note_text(self) -> None:
        """Notes that text is released; the first time is the time to first token."""
        if self.first_text_seconds is None:
            self.first_text_seconds = time.perf_counter() - self.started

    def add(self, text: str) -> list[Delta]:
        """Appends the platform's own text to each answer; returns its events."""
        if self.choices:
            return [choice.release(text) for choice in self.choices]
        self.said += text
        return [Delta(text, number) for number in range(self.wanted)]

    @property
    def usage(self) -> Usage:
        """Of all attempts together."""
        return sum((attempt.usage for attempt in self.attempts), Usage())

    @property
    def cost(self) -> Cost:
        """Of all attempts together."""
        return total(attempt.cost for attempt in self.attempts)

    @property
    def output_verdicts(self) -> list[types_pb2.Verdict]:
        """Verdicts on the output so far."""
        verdicts = list(self.said_verdicts)
        for choice in (*self.earlier, *self.choices):
            verdicts += [choice.stream.verdict] if choice.stream.verdict else []
            verdicts += choice.tool_verdicts
        return verdicts

    def answered(self, done: Done) -> monitor_pb2.Interaction:
        """The record of an answer that ended without an error, perhaps by a guardrail."""
        blocked = all(reason == types_pb2.FINISH_REASON_CONTENT_FILTER for reason in done.finish_reasons)
        outcome = monitor_pb2.OUTCOME_BLOCKED if blocked else monitor_pb2.OUTCOME_ANSWERED
        record = self._interaction(outcome)
        record.model = done.model
        record.citations.extend(done.citations)
        record.cached = done.cached
        record.refused = done.refused
        return record

    def embedded(self) -> monitor_pb2.Interaction:
        """The record of texts that were embedded. They are not scanned, so they are not stored."""
        return self._interaction(monitor_pb2.OUTCOME_ANSWERED)

    def failed(self, error: BaseException) -> monitor_pb2.Interaction:
        """The record of an answer that an error ended."""
        if isinstance(error, InputBlocked):
            self.input_verdicts += error.verdicts
        if not isinstance(error, FactoryError):
            error = Internal("The platform made a mistake.")
        outcome = {ContentBlocked: monitor_pb2.OUTCOME_BLOCKED, Cancelled: monitor_pb2.OUTCOME_CANCELLED}
        kind = next((outcome[base] for base in outcome if isinstance(error, base)), monitor_pb2.OUTCOME_FAILED)
        record = self._interaction(kind)
        record.error_reason = error.reason.value
        record.error_message = error.message
        return record

    def _interaction(self, outcome: monitor_pb2.Outcome.ValueType) -> monitor_pb2.Interaction:
        cost = self.cost
        seconds, nanos = divmod(int(self.started_at * 1e9), 1_000_000_000)
        return monitor_pb2.Interaction(
            request_id=self.request_id,
            tenant=self.caller.tenant,
            principal=self.caller.principal,
            key_id=self.caller.key_id,
            user=self.user,
            start_time=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos),
            task=self.task,
            route=self.route,
            model=self.attempts[-1].model if self.attempts else self.model,
            attempts=[
                monitor_pb2.ModelAttempt(
                    model=attempt.model,
                    error_reason=attempt.error_reason,
                    duration_us=_microseconds(attempt.duration_seconds),
                )
                for attempt in self.attempts
            ],
            prompt_version=self.prompt_version,
            index_version=self.found.index_version,
            passages=[
                monitor_pb2.PassageReference(passage_id=p.passage_id, document_id=p.document_id, score=p.score)
                for p in self.found.passages
            ],
            verdicts=[*self.input_verdicts, *self.output_verdicts],
            input=[images.without_bytes(message) for message in _bounded(self.messages)],
            output=self._output(),
            usage=self.usage.to_proto(),
            cost_micros=cost.rounded_micros,
            currency=cost.currency,
            time_to_first_token_us=_microseconds(self.first_text_seconds or 0.0),
            duration_us=_microseconds(time.perf_counter() - self.started),
            outcome=outcome,
            conversation_id=self.conversation_id,
            evaluation=self.evaluation,
            adapter=self.adapter,
            split=self.split,
            arm=self.arm,
            arm_chosen=self.arm_chosen,
            trace_id=telemetry.current_trace_id(),
            traceparent=dict(telemetry.inject()).get("traceparent", ""),
        )

    def _output(self) -> str:
        texts = [*(choice.text for choice in (*self.earlier, *self.choices)), self.said]
        return "\n\n".join(filter(None, texts))[:_MAX_TEXT_CHARACTERS]


def _bounded(messages: tuple[types_pb2.Message, ...]) -> tuple[types_pb2.Message, ...]:
    size = 0
    for i in range(len(messages) - 1, -1, -1):
        size += len(messages[i].content) + sum(len(call.arguments_json) for call in messages[i].tool_calls)
        if size > _MAX_TEXT_CHARACTERS:
            return messages[i + 1 :]
    return messages


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
