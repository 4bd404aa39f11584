"""Writes an answer: all output of tasks is sent here, so that it is checked and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from genaifactory.types.v1 import types_pb2
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import UpstreamFailed
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.answers import citations, prompts, refusal
from genaifactory_orchestrator.answers.choice import Choice
from genaifactory_orchestrator.answers.events import Done, Emit
from genaifactory_orchestrator.answers.guardrail import Guard, InputBlocked
from genaifactory_orchestrator.answers.interaction import Record
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.routes import Plan
from genaifactory_orchestrator.answers.tools import ClientTools, Toolset
from genaifactory_orchestrator.models.backend import Delta, Prompt, ToolCallDelta
from genaifactory_orchestrator.models.client import ModelClient
from genaifactory_orchestrator.models.partial_answer import Finished

_STOP = types_pb2.FINISH_REASON_STOP


class Writer:
    """Writes one answer."""

    def __init__(
        self,
        guard: Guard,
        models: ModelClient,
        telemetry: Telemetry,
        question: CheckedRequest,
        plan: Plan,
        history: Sequence[types_pb2.Message],
        record: Record,
        emit: Emit,
    ) -> None:
        """history: the stored conversation before the question. record: holds the checked messages."""
        self.plan = plan
        self.question = question
        self.record = record
        self.client_tools = ClientTools(question.tools, emit)
        self._history = history
        self._emit = emit
        self._guard = guard
        self._models = models
        self._telemetry = telemetry

    @property
    def text(self) -> str:
        """The released text of the last model turn; of several choices, the first one's."""
        return self.record.choices[0].text

    def prompt(self, passages: tuple[types_pb2.Passage, ...] = ()) -> Prompt:
        """A model's input: the route's prompt before the client's system messages, the conversation, the tools."""
        record, plan, question = self.record, self.plan, self.question
        system = [message for message in record.messages if message.role == types_pb2.ROLE_SYSTEM]
        rest = [message for message in record.messages if message.role != types_pb2.ROLE_SYSTEM]
        if plan.template is not None:
            text = plan.template.render(
                question=record.asked,
                passages=passages,
                tenant=record.caller.tenant,
                today=prompts.today(),
                refusal=refusal.text(record.asked, plan.prompt),
            )
            whole = "\n\n".join((text, *(message.content for message in system)))
            system = [types_pb2.Message(role=types_pb2.ROLE_SYSTEM, content=whole)]
        sampling = types_pb2.Sampling()
        sampling.CopyFrom(question.sampling)
        if not sampling.HasField("max_tokens"):
            sampling.max_tokens = plan.route.max_output_tokens
        return Prompt(
            messages=(*system, *self._history, *rest),
            documents=passages,
            sampling=sampling,
            tools=question.tools,
            tool_choice=question.tool_choice,
            output_format=question.output_format,
        )

    async def say(self, text: str, verdicts: tuple[types_pb2.Verdict, ...] = ()) -> None:
        """Emits text that the platform wrote itself, or that was scanned before, with these verdicts."""
        record = self.record
        record.said = text
        record.said_verdicts += verdicts
        record.note_text()
        for number in range(record.wanted):
            await self._emit(Delta(text, number))

    async def say_checked(self, text: str, passages: Sequence[types_pb2.Passage]) -> Done:
        """Emits text that no model wrote, as released by the output guardrail, with citations of the passages."""
        with self._telemetry.span("check reply"):
            verdict, passed = await self._guard.check_output(text, self.plan.policy)
        if verdict.action == types_pb2.ACTION_BLOCK:
            self.record.said_verdicts += (verdict,)
            return Done(finish_reasons=(types_pb2.FINISH_REASON_CONTENT_FILTER,) * self.record.wanted)
        await self.say(passed, (verdict,))
        return Done(finish_reasons=(_STOP,) * self.record.wanted, citations=tuple(citations.find(passed, passages)))

    async def refuse(self) -> Done:
        """Emits the refusal, without a model."""
        await self.say(refusal.text(self.record.asked, self.plan.prompt))
        return Done(finish_reasons=(_STOP,) * self.record.wanted, refused=True)

    async def write(
        self, prompt: Prompt, toolset: Toolset, *, marks: int | None = None
    ) -> tuple[types_pb2.Message, ...]:
        """Runs one turn of a model. Its text is released while it is written, its tool calls once they are complete.

        prompt: its tools are replaced by the toolset's. marks: the number of passages that marks of the text may name;
        None: marks are left unchanged. Returns the messages to append to the prompt of the next turn: the model's calls
        and the checked results; none when the answer ends here.

        Raises FactoryError.
        """
        plan, record, limit = self.plan, self.record, self.plan.route.timeout_seconds
        tools = await toolset.tools()
        if tools is not prompt.tools:
            prompt = replace(prompt, tools=tuple(tools))
        results: list[types_pb2.Message] = []
        with self._telemetry.span("write"):
            async with AsyncExitStack() as streams, task_group() as tasks:
                choices = [
                    Choice(
                        number,
                        await streams.enter_async_context(self._guard.open_output(plan.policy, timeout_seconds=limit)),
                        passages=marks,
                        logprobs=prompt.sampling.logprobs,
                    )
                    for number in range(prompt.choices)
                ]
                record.begin_turn(choices)
                feeding = tasks.create_task(self._feed(prompt, choices))
                for choice in choices:
                    tasks.create_task(choice.stream.send())
                    tasks.create_task(self._release(choice, choices, feeding))
            offered = frozenset(tool.name for tool in tools)
            for choice in choices:
                for call in await choice.checked_tool_calls(self._guard, plan.policy, offered):
                    result = await toolset.call(call)
                    if result is not None:
                        results.append(
                            types_pb2.Message(role=types_pb2.ROLE_TOOL, tool_call_id=call.tool_call.id, content=result)
                        )
            return (choices[0].message(), *await self._checked(results)) if results else ()

    def done(self, cited: Iterable[types_pb2.Citation] = (), *, refused: bool = False) -> Done:
        """The end of an answer with the last model turn."""
        record = self.record
        return Done(
            finish_reasons=tuple(choice.finish_reason for choice in record.choices),
            model=record.attempts[-1].model if record.attempts else record.model,
            citations=tuple(cited),
            usage=record.usage,
            cost=record.cost,
            refused=refused,
        )

    async def _checked(self, results: Sequence[types_pb2.Message]) -> tuple[types_pb2.Message, ...]:
        """The results of tools after the input check: they come from outside, as a client's messages."""
        try:
            checked = await self._guard.check_input(results, self.plan.policy)
        except InputBlocked as blocked:
            raise InputBlocked(
                "tools", blocked.verdicts[0], blocked.verdicts, "A guardrail refuses what a tool returned."
            ) from None
        self.record.input_verdicts += checked.verdicts
        return checked.messages

    async def _feed(self, prompt: Prompt, choices: list[Choice]) -> None:
        """Passes the model's pieces to the guardrail. Cancelling it cancels the model's call."""
        plan = self.plan
        generated = self._models.generate(
            plan.chain(prompt.messages),
            prompt,
            timeout_seconds=plan.route.timeout_seconds,
            attempts=self.record.attempts,
            adapter=plan.adapter,
        )
        async with aclosing(generated) as events:
            async for event in events:
                match event:
                    case Delta():
                        await _of(choices, event.choice).feed(event)
                    case ToolCallDelta():
                        _of(choices, event.choice).feed_tool_call(event)
                    case Finished():
                        for choice, reason in zip(choices, event.finish_reasons, strict=True):
                            await choice.end(reason)

    async def _release(self, choice: Choice, choices: list[Choice], feeding: asyncio.Task[None]) -> None:
        """Passes released text to the client. Cancels the model's call when every choice is blocked."""
        async for text in choice.stream.released():
            self.record.note_text()
            await self._emit(choice.release(text))
        if choice.stream.verdict is not None and choice.stream.verdict.action == types_pb2.ACTION_BLOCK:
            choice.block()
            if all(each.blocked for each in choices):
                feeding.cancel()


def _of(choices: list[Choice], number: int) -> Choice:
    if number >= len(choices):
        raise UpstreamFailed("The model wrote more choices than were requested.")
    return choices[number]
