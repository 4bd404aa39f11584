"""The path of an answer: read `Answerer.answer` and `_path` first."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from prometheus_client import Counter, Histogram

from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, identity
from genaifactory_common.errors import Cancelled, DeadlineExceeded, FactoryError, Unavailable
from genaifactory_common.identity import Caller
from genaifactory_common.telemetry import LATENCY_BUCKETS, Telemetry
from genaifactory_orchestrator.answers import citations, preparation, refusal, splits
from genaifactory_orchestrator.answers.events import Done, Emit, RouteChosen
from genaifactory_orchestrator.answers.guardrail import Guard
from genaifactory_orchestrator.answers.interaction import Record
from genaifactory_orchestrator.answers.preparation import Preparation, PreparedAnswer
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.routes import Plan, Plans
from genaifactory_orchestrator.answers.tasks.protocol import Tasks
from genaifactory_orchestrator.answers.writer import Writer
from genaifactory_orchestrator.models.client import ModelClient
from genaifactory_orchestrator.stores import cache, conversations
from genaifactory_orchestrator.stores.cache import Cache
from genaifactory_orchestrator.stores.conversations import Conversations, History
from genaifactory_orchestrator.stores.outbox import Outbox

logger = logging.getLogger(__name__)

ANSWERS = Counter("genaifactory_answers_total", "Requests for answers, by outcome.", ["route", "outcome"])
ARM_ANSWERS = Counter(
    "genaifactory_arm_answers_total",
    "Requests for answers of routes with a split, by arm and outcome.",
    ["split", "arm", "outcome"],
)
FIRST_TEXT = Histogram(
    "genaifactory_first_text_seconds",
    "From the start of a request to its first released text.",
    ["route"],
    buckets=LATENCY_BUCKETS,
)
UNKEPT = Counter(
    "genaifactory_unkept_turns_total", "Answers that were sent but could not be added to their conversation."
)

_STOP = types_pb2.FINISH_REASON_STOP
_NEW = History(0, ())


class Answerer:
    """Answers questions."""

    def __init__(
        self,
        plans: Plans,
        guard: Guard,
        tasks: Tasks,
        models: ModelClient,
        answers: Cache,
        stored: Conversations,
        outbox: Outbox,
        telemetry: Telemetry,
    ) -> None:
        self._plans = plans
        self._guard = guard
        self._tasks = tasks
        self._preparation = Preparation(guard, answers, telemetry)
        self._models = models
        self._cache = answers
        self._conversations = stored
        self._outbox = outbox
        self._telemetry = telemetry

    async def answer(self, question: CheckedRequest, emit: Emit) -> None:
        """Answers for the current caller, event by event; raises FactoryError.

        In every case one interaction is recorded, for a successful answer before `Done` is emitted. An answer is sent
        even if its turn cannot be stored in its conversation; the record then has the error.
        """
        caller = identity.current()
        unit = splits.Unit(question.user, question.conversation_id, question.request_id)
        plan = self._plans.resolve(
            question.route, caller.tenant, unit, arm=question.arm, evaluation=question.evaluation
        )
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
                answered.error_message = f"The answer was sent, but is not in its conversation: {unkept.message}"
            await place.put(_noted(record, answered))
        await emit(done)

    async def _path(
        self, question: CheckedRequest, caller: Caller, plan: Plan, record: Record, emit: Emit
    ) -> tuple[History, Done]:
        chain = plan.chain(question.messages)
        await self._check_ids(question, plan, record)
        history = await self._history(question, caller, plan)
        task = self._tasks[plan.route.task]
        prepared = await self._preparation.prepare(task, question, plan, history, record)
        findings, entry = prepared.findings, prepared.entry
        writer = Writer(self._guard, self._models, self._telemetry, question, plan, history.messages, record, emit)
        await emit(prepared.opened())
        await emit(RouteChosen(plan.route.name, chain[0], plan.prompt_version, plan.split, plan.arm))
        if findings.found is not None:
            await emit(findings.found)
        if entry is not None:
            done = await _replay(entry, record, writer)
        else:
            done = await task.answer(writer, findings)
            self._remember(question, plan, prepared, record, done)
        if question.evaluation is not None:
            done = replace(done, passages=tuple(record.found.passages))
        if (reading := record.found.reading) is not None:
            done = replace(done, reading=reading)
            if done.refused:
                for delta in record.add(refusal.while_reading(record.asked, reading)):
                    await emit(delta)
        for verdict in (*record.input_verdicts, *record.output_verdicts):
            await emit(verdict)
        return history, done

    async def _check_ids(self, question: CheckedRequest, plan: Plan, record: Record) -> None:
        """Checks ids, before anything is stored under them."""
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
        """Adds the turn to its stored conversation, outside the route's timeout; returns the error if that fails."""
        if not question.conversation_id:
            return None
        try:
            await self._conversations.add_turn(history, _turn(record, done))
        except Unavailable as error:
            UNKEPT.inc()
            logger.error("the answer %s is not in its conversation: %s", record.request_id, error.message)
            return error
        return None

    def _remember(
        self, question: CheckedRequest, plan: Plan, prepared: PreparedAnswer, record: Record, done: Done
    ) -> None:
        """Stores an answer in the cache if it can be reused: one turn of a model, from what was looked up before.

        Not one of a stored conversation: erasing the conversation must leave no copy of it.
        """
        if not prepared.key or question.conversation_id or done.finish_reasons != (_STOP,):
            return
        if record.earlier or not record.choices:
            return
        (choice,) = record.choices
        if choice.stream.verdict is None or not choice.text:
            return
        now = time.time()
        self._cache.store(
            cache.Entry(
                key=prepared.key,
                tenant=record.caller.tenant,
                question=cache.normalised(record.asked),
                output=choice.text,
                model=done.model,
                prompt_version=plan.prompt_version,
                knowledge=preparation.knowledge(prepared.findings),
                refused=done.refused,
                verdict=choice.stream.verdict.SerializeToString(),
                created_at=now,
                expires_at=now + plan.route.cache.max_age_seconds,
            )
        )


async def _replay(entry: cache.Entry, record: Record, writer: Writer) -> Done:
    """Emits a cached answer. It was scanned when it was stored, under the same policy."""
    await writer.say(entry.output, (types_pb2.Verdict.FromString(entry.verdict),))
    return Done(
        finish_reasons=(_STOP,),
        model=entry.model,
        citations=tuple(citations.find(entry.output, record.found.passages)),
        cached=True,
        refused=entry.refused,
    )


def _new_record(question: CheckedRequest, caller: Caller, plan: Plan) -> Record:
    return Record(
        request_id=question.request_id,
        caller=caller,
        task=plan.route.task,
        route=plan.route.name,
        prompt_version=plan.prompt_version,
        evaluation=question.evaluation.run if question.evaluation is not None else "",
        adapter=plan.adapter,
        split=plan.split,
        arm=plan.arm,
        arm_chosen=plan.arm_chosen,
        wanted=question.choices,
    )


def _turn(record: Record, done: Done) -> list[types_pb2.Message]:
    """The messages of this turn for its stored conversation; none of one that a guardrail ended."""
    if done.finish_reasons[0] == types_pb2.FINISH_REASON_CONTENT_FILTER:
        return []
    if record.choices:
        answer = record.choices[0].message()
    else:
        answer = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, content=record.said)
    return [*(message for message in record.messages if message.role != types_pb2.ROLE_SYSTEM), answer]


def _too_late(plan: Plan) -> FactoryError:
    return DeadlineExceeded(f"The answer took longer than the {plan.route.timeout_seconds:g} seconds of its route.")


def _why_cancelled() -> FactoryError:
    remaining = channels.remaining_seconds()
    if remaining is not None and remaining <= 0:
        return DeadlineExceeded("The answer took longer than its caller allowed.")
    return Cancelled("The caller cancelled the request.")


def _noted(record: Record, interaction: monitor_pb2.Interaction) -> monitor_pb2.Interaction:
    """The record; counts the outcome of a request that neither an evaluation nor a tester asked: candidates fail and
    are slow unnoticed.
    """
    if record.evaluation or record.arm_chosen:
        return interaction
    outcome = monitor_pb2.Outcome.Name(interaction.outcome).removeprefix("OUTCOME_").lower()
    ANSWERS.labels(record.route, outcome).inc()
    if record.split:
        ARM_ANSWERS.labels(record.split, record.arm, outcome).inc()
    if record.first_text_seconds is not None:
        FIRST_TEXT.labels(record.route).observe(record.first_text_seconds)
    return interaction
