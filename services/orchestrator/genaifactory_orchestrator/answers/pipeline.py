"""The path of an answer. `Answerer.answer` and `_path` are the whole of it; read them first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from prometheus_client import Counter, Histogram

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, identity
from genaifactory_common.errors import Cancelled, DeadlineExceeded, FactoryError, Unavailable, UpstreamFailed
from genaifactory_common.identity import Caller
from genaifactory_common.telemetry import LATENCY_BUCKETS, Telemetry
from genaifactory_orchestrator.answers import citations, preparation, refusal
from genaifactory_orchestrator.answers.choice import Choice
from genaifactory_orchestrator.answers.concurrency import task_group
from genaifactory_orchestrator.answers.direct import Reply
from genaifactory_orchestrator.answers.events import Done, Emit, RouteChosen
from genaifactory_orchestrator.answers.guardrail import Guard
from genaifactory_orchestrator.answers.interaction import Record
from genaifactory_orchestrator.answers.preparation import Preparation, PreparedAnswer
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.retrieval import Retrieval, RetrievedPassages
from genaifactory_orchestrator.answers.routes import Plan, Plans
from genaifactory_orchestrator.models.backend import Delta, Prompt, ToolCallDelta
from genaifactory_orchestrator.models.client import ModelClient
from genaifactory_orchestrator.models.partial_answer import Finished
from genaifactory_orchestrator.stores import cache, conversations
from genaifactory_orchestrator.stores.cache import Cache
from genaifactory_orchestrator.stores.conversations import Conversations, History
from genaifactory_orchestrator.stores.outbox import Outbox

logger = logging.getLogger(__name__)

ANSWERS = Counter("genaifactory_answers_total", "Requests for answers, by how they ended.", ["route", "outcome"])
FIRST_TEXT = Histogram(
    "genaifactory_first_text_seconds",
    "From the start of a request to its first released text.",
    ["route"],
    buckets=LATENCY_BUCKETS,
)
UNKEPT = Counter(
    "genaifactory_unkept_turns_total", "Answers that were given but could not be added to their conversation."
)

_STOP = types_pb2.FINISH_REASON_STOP
_NEW = History(0, ())


class Answerer:
    """Answers questions."""

    def __init__(
        self,
        plans: Plans,
        guard: Guard,
        retriever: Retrieval,
        models: ModelClient,
        answers: Cache,
        stored: Conversations,
        outbox: Outbox,
        telemetry: Telemetry,
    ) -> None:
        self._plans = plans
        self._guard = guard
        self._preparation = Preparation(guard, retriever, answers, telemetry)
        self._models = models
        self._cache = answers
        self._conversations = stored
        self._outbox = outbox
        self._telemetry = telemetry

    async def answer(self, question: CheckedRequest, emit: Emit) -> None:
        """Answers for the current caller, event by event; raises FactoryError.

        However it ends, one interaction is recorded; of an answer that ends well, before `Done` is emitted. An answer
        that is there is given even if its conversation cannot be stored; then the record says so.
        """
        caller = identity.current()
        plan = self._plans.resolve(question.route, caller.tenant)
        record = _new_record(question, caller, plan)
        with self._outbox.reserve() as place:
            try:
                async with asyncio.timeout(plan.route.timeout_seconds):
                    history, done = await self._path(question, caller, plan, record, emit)
                unkept = await self._keep(question, history, record, done)
            except asyncio.CancelledError:
                place.put_soon(_noted(record, record.failed(_why_cancelled())))
                raise
            except Exception as error:
                failure = _too_late(plan) if isinstance(error, TimeoutError) else error
                await place.put(_noted(record, record.failed(failure)))
                raise failure from error.__cause__
            answered = record.answered(done)
            if unkept is not None:
                answered.error_reason = unkept.reason.value
                answered.error_message = f"The answer was given, but is not in its conversation: {unkept.message}"
            await place.put(_noted(record, answered))
        await emit(done)

    async def _path(
        self, question: CheckedRequest, caller: Caller, plan: Plan, record: Record, emit: Emit
    ) -> tuple[History, Done]:
        chain = plan.chain(question.messages)
        await self._check_ids(question, plan, record)
        history = await self._history(question, caller, plan)
        prepared = await self._preparation.prepare(question, caller, plan, history, record)
        found, entry = prepared.found, prepared.entry
        await emit(prepared.opened())
        await emit(RouteChosen(plan.route.name, chain[0], plan.prompt_version))
        if plan.retrieves:
            await emit(found)
        if entry is not None:
            done = await self._replay(entry, found, record, emit)
        elif prepared.reply is not None:
            done = await self._say_checked(prepared.reply, plan, record, emit)
        elif plan.retrieves and (not found.passages or found.term_coverage < plan.route.min_term_coverage):
            done = await self._refuse(plan, record, emit)
        else:
            done = await self._write(question, caller, plan, history, record, emit)
            self._remember(question, plan, prepared, record, done)
        if found.reading is not None:
            done = replace(done, reading=found.reading)
            if done.refused:
                for delta in record.add(refusal.while_reading(_asked(record.messages), found.reading)):
                    await emit(delta)
        for verdict in (*record.input_verdicts, *record.output_verdicts):
            await emit(verdict)
        return history, done

    async def _check_ids(self, question: CheckedRequest, plan: Plan, record: Record) -> None:
        """Before anything is stored under them."""
        ids = question.ids()
        if ids or question.user:
            with self._telemetry.span("check ids"):
                record.user, record.input_verdicts = await self._guard.check_ids(ids, question.user, plan.policy)
        record.conversation_id = question.conversation_id

    async def _history(self, question: CheckedRequest, caller: Caller, plan: Plan) -> History:
        if not question.conversation_id:
            return _NEW
        key = conversations.Key(caller.tenant, caller.principal, question.conversation_id)
        return await self._conversations.begin(key, limit=plan.route.history_messages)

    async def _keep(self, question: CheckedRequest, history: History, record: Record, done: Done) -> Unavailable | None:
        """Adds the turn to its stored conversation; what kept it from that. The route's timeout no longer counts."""
        if not question.conversation_id:
            return None
        try:
            await self._conversations.add_turn(history, _turn(record, done))
        except Unavailable as error:
            UNKEPT.inc()
            logger.error("the answer %s is not in its conversation: %s", record.request_id, error.message)
            return error
        return None

    async def _replay(self, entry: cache.Entry, found: RetrievedPassages, record: Record, emit: Emit) -> Done:
        """Says again what was said before. It was scanned then, under the same policy."""
        verdict = types_pb2.Verdict.FromString(entry.verdict)
        await _say(entry.output, (verdict,), record, emit)
        return Done(
            finish_reasons=(_STOP,),
            model=entry.model,
            citations=tuple(citations.find(entry.output, found.passages)),
            cached=True,
            refused=entry.refused,
        )

    async def _say_checked(self, reply: Reply, plan: Plan, record: Record, emit: Emit) -> Done:
        """Says what needs no model, as far as the output guardrail lets it."""
        with self._telemetry.span("check reply"):
            verdict, text = await self._guard.check_output(reply.text, plan.policy)
        if verdict.action == types_pb2.ACTION_BLOCK:
            record.said_verdicts = (verdict,)
            return Done(finish_reasons=(types_pb2.FINISH_REASON_CONTENT_FILTER,) * record.wanted)
        await _say(text, (verdict,), record, emit)
        return Done(
            finish_reasons=(_STOP,) * record.wanted, citations=tuple(citations.find(text, reply.found.passages))
        )

    async def _refuse(self, plan: Plan, record: Record, emit: Emit) -> Done:
        """Says that the passages do not hold the answer; no model is asked."""
        await _say(refusal.text(_asked(record.messages), plan.prompt), (), record, emit)
        return Done(finish_reasons=(_STOP,) * record.wanted, refused=True)

    async def _write(
        self, question: CheckedRequest, caller: Caller, plan: Plan, history: History, record: Record, emit: Emit
    ) -> Done:
        """Has a model write the answer; what leaves has passed the guardrail."""
        prompt = _prompt(question, caller, plan, history, record)
        marks = len(record.found.passages) if plan.retrieves else None
        limit = plan.route.timeout_seconds
        with self._telemetry.span("write"):
            async with AsyncExitStack() as streams, task_group() as tasks:
                record.choices = choices = [
                    Choice(
                        number,
                        await streams.enter_async_context(self._guard.open_output(plan.policy, timeout_seconds=limit)),
                        passages=marks,
                        logprobs=question.sampling.logprobs,
                    )
                    for number in range(question.choices)
                ]
                feeding = tasks.create_task(self._feed(prompt, plan, choices, record))
                for choice in choices:
                    tasks.create_task(choice.stream.send())
                    tasks.create_task(_release(choice, choices, feeding, record, emit))
            offered = frozenset(tool.name for tool in question.tools)
            for choice in choices:
                for call in await choice.checked_tool_calls(self._guard, plan.policy, offered):
                    await emit(call)
        text = choices[0].text
        return Done(
            finish_reasons=tuple(choice.finish_reason for choice in choices),
            model=record.attempts[-1].model if record.attempts else record.model,
            citations=tuple(citations.find(text, record.found.passages)) if plan.retrieves else (),
            usage=record.usage,
            cost=record.cost,
            refused=plan.retrieves and refusal.is_refusal(text, plan.prompt),
        )

    async def _feed(self, prompt: Prompt, plan: Plan, choices: list[Choice], record: Record) -> None:
        """From the model to the guardrail. Cancelling it cancels the model."""
        generated = self._models.generate(
            plan.chain(prompt.messages), prompt, timeout_seconds=plan.route.timeout_seconds, attempts=record.attempts
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

    def _remember(
        self, question: CheckedRequest, plan: Plan, prepared: PreparedAnswer, record: Record, done: Done
    ) -> None:
        """Keeps an answer that may be given again.

        Not one of a stored conversation: erasing the conversation shall leave no copy of it behind.
        """
        if not prepared.key or question.conversation_id or done.finish_reasons != (_STOP,):
            return
        (choice,) = record.choices
        if choice.stream.verdict is None or not choice.text:
            return
        now = time.time()
        self._cache.store(
            cache.Entry(
                key=prepared.key,
                tenant=record.caller.tenant,
                question=cache.normalised(_asked(record.messages)),
                output=choice.text,
                model=done.model,
                prompt_version=plan.prompt_version,
                knowledge=preparation.knowledge(plan, prepared.found),
                refused=done.refused,
                verdict=choice.stream.verdict.SerializeToString(),
                created_at=now,
                expires_at=now + plan.route.cache.max_age_seconds,
            )
        )


async def _release(
    choice: Choice, choices: list[Choice], feeding: asyncio.Task[None], record: Record, emit: Emit
) -> None:
    """From the guardrail to the client. When it has blocked every choice, the model need not go on."""
    async for text in choice.stream.released():
        record.note_text()
        await emit(choice.release(text))
    if choice.stream.verdict is not None and choice.stream.verdict.action == types_pb2.ACTION_BLOCK:
        choice.block()
        if all(each.blocked for each in choices):
            feeding.cancel()


async def _say(text: str, verdicts: tuple[types_pb2.Verdict, ...], record: Record, emit: Emit) -> None:
    record.said, record.said_verdicts = text, verdicts
    record.note_text()
    for number in range(record.wanted):
        await emit(Delta(text, number))


def _of(choices: list[Choice], number: int) -> Choice:
    if number >= len(choices):
        raise UpstreamFailed("The model wrote more choices than it was asked for.")
    return choices[number]


def _new_record(question: CheckedRequest, caller: Caller, plan: Plan) -> Record:
    return Record(
        request_id=question.request_id,
        caller=caller,
        task=plan.route.task,
        route=plan.route.name,
        prompt_version=plan.prompt_version,
        wanted=question.choices,
    )


def _prompt(question: CheckedRequest, caller: Caller, plan: Plan, history: History, record: Record) -> Prompt:
    """What the model gets: the route's prompt before the client's system messages, then the conversation."""
    asked, found = _asked(record.messages), record.found
    system = [message for message in record.messages if message.role == types_pb2.ROLE_SYSTEM]
    rest = [message for message in record.messages if message.role != types_pb2.ROLE_SYSTEM]
    if plan.template is not None:
        text = plan.template.render(
            question=asked,
            passages=found.passages,
            tenant=caller.tenant,
            today=preparation.today(),
            refusal=refusal.text(asked, plan.prompt),
        )
        whole = "\n\n".join((text, *(message.content for message in system)))
        system = [types_pb2.Message(role=types_pb2.ROLE_SYSTEM, content=whole)]
    sampling = types_pb2.Sampling()
    sampling.CopyFrom(question.sampling)
    if not sampling.HasField("max_tokens"):
        sampling.max_tokens = plan.route.max_output_tokens
    return Prompt(
        messages=(*system, *history.messages, *rest),
        documents=found.passages,
        sampling=sampling,
        tools=question.tools,
        tool_choice=question.tool_choice,
        output_format=question.output_format,
    )


def _asked(messages: Sequence[types_pb2.Message]) -> str:
    """The question: what a person said last."""
    return next((m.content for m in reversed(messages) if m.role == types_pb2.ROLE_USER), "")


def _turn(record: Record, done: Done) -> list[types_pb2.Message]:
    """What a stored conversation keeps of this turn; nothing of one that a guardrail ended."""
    if done.finish_reasons[0] == types_pb2.FINISH_REASON_CONTENT_FILTER:
        return []
    answer = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=record.said)
    if record.choices:
        first = record.choices[0]
        answer.content = first.text
        answer.tool_calls.extend(call for _, call in sorted(first.tool_calls.items()))
    return [*(message for message in record.messages if message.role != types_pb2.ROLE_SYSTEM), answer]


def _too_late(plan: Plan) -> FactoryError:
    return DeadlineExceeded(f"The answer took longer than the {plan.route.timeout_seconds:g} seconds of its route.")


def _why_cancelled() -> FactoryError:
    remaining = channels.remaining_seconds()
    if remaining is not None and remaining <= 0:
        return DeadlineExceeded("The answer took longer than its caller allowed.")
    return Cancelled("The caller went away.")


def _noted(record: Record, interaction: monitor_pb2.Interaction) -> monitor_pb2.Interaction:
    """Counts how a request ended."""
    outcome = monitor_pb2.Outcome.Name(interaction.outcome).removeprefix("OUTCOME_").lower()
    ANSWERS.labels(record.route, outcome).inc()
    if record.first_text_seconds is not None:
        FIRST_TEXT.labels(record.route).observe(record.first_text_seconds)
    return interaction
