"""The preparation of an answer, before a model is called: the checked input, a cached answer, and the passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from genaifactory.types.v1 import types_pb2
from genaifactory_common import telemetry
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import FactoryError
from genaifactory_common.identity import Caller
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.answers import prompts
from genaifactory_orchestrator.answers.events import Opened
from genaifactory_orchestrator.answers.guardrail import Checked, Guard
from genaifactory_orchestrator.answers.interaction import Record
from genaifactory_orchestrator.answers.request import CheckedRequest
from genaifactory_orchestrator.answers.routes import Plan
from genaifactory_orchestrator.answers.tasks.protocol import Findings, FindingsT, Task
from genaifactory_orchestrator.stores import cache
from genaifactory_orchestrator.stores.cache import Cache
from genaifactory_orchestrator.stores.conversations import History


@dataclass(frozen=True)
class PreparedAnswer:
    """The results of the preparation."""

    checked: Checked
    findings: Findings
    entry: cache.Entry | None
    key: str
    """Of the cache; empty when the answer may be neither read from it nor stored in it."""
    cache_use: types_pb2.CacheUse.ValueType

    def opened(self) -> Opened:
        """The first event for the client."""
        masked = Counter(
            finding.entity_type
            for verdict in self.checked.verdicts
            for finding in verdict.findings
            if finding.action == types_pb2.ACTION_MASK
        )
        return Opened(masked if self.checked.masked else {}, self.cache_use)


class Preparation:
    """Runs three steps concurrently: input check, cache look-up, and the task's look-up."""

    def __init__(self, guard: Guard, answers: Cache, service_telemetry: Telemetry) -> None:
        self._guard = guard
        self._cache = answers
        self._telemetry = service_telemetry

    async def prepare(
        self, task: Task[Any], question: CheckedRequest, plan: Plan, history: History, record: Record
    ) -> PreparedAnswer:
        """Both look-ups begin with the text as sent. If the check masks some of it, they are repeated with the masked
        text, and their earlier results are dropped. A block takes precedence over other errors.

        Adds messages, verdicts and passages to the record. Raises FactoryError.
        """
        caller, earlier = record.caller, history.messages
        key = _cache_key(question, caller, plan, earlier, question.messages)
        async with task_group() as tasks:
            checking = tasks.create_task(self._check(question, plan))
            looking = tasks.create_task(self._look_up(key, question, plan))
            searching = tasks.create_task(_settled(task.look_up(plan, question, earlier, question.messages)))
        checked, entry, searched = checking.result(), looking.result(), searching.result()
        record.messages = checked.messages
        record.input_verdicts += checked.verdicts
        if checked.masked:
            key = _cache_key(question, caller, plan, earlier, checked.messages)
            entry = await self._look_up(key, question, plan)
            searched = await _settled(task.look_up(plan, question, earlier, checked.messages))
        if isinstance(searched, FactoryError):
            raise searched
        if searched.found is not None:
            record.found = searched.found
        if entry is not None and entry.knowledge != knowledge(searched):
            entry = None
        return PreparedAnswer(checked, searched, entry, key, self._counted(key, entry, question))

    def _counted(self, key: str, entry: cache.Entry | None, question: CheckedRequest) -> types_pb2.CacheUse.ValueType:
        if not key or question.fresh:
            return types_pb2.CACHE_USE_BYPASS
        self._cache.count(entry)
        return types_pb2.CACHE_USE_MISS if entry is None else types_pb2.CACHE_USE_HIT

    async def _check(self, question: CheckedRequest, plan: Plan) -> Checked:
        with self._telemetry.span("check input"):
            return await self._guard.check_input(question.messages, plan.policy, question.texts_beside_messages())

    async def _look_up(self, key: str, question: CheckedRequest, plan: Plan) -> cache.Entry | None:
        if not key or question.fresh:
            return None
        with self._telemetry.span("look up cache"):
            entry = await self._cache.look_up(key, max_age_seconds=plan.route.cache.max_age_seconds)
            telemetry.describe({"genaifactory.cache.hit": entry is not None})
            return entry


def knowledge(findings: Findings) -> str:
    """Fingerprint of the passages that an answer is based on; empty for a task without a look-up."""
    return "" if findings.found is None else findings.found.fingerprint


async def _settled(searching: Awaitable[FindingsT]) -> FindingsT | FactoryError:
    try:
        return await searching
    except FactoryError as error:
        return error


def _cache_key(
    question: CheckedRequest,
    caller: Caller,
    plan: Plan,
    history: Sequence[types_pb2.Message],
    messages: Sequence[types_pb2.Message],
) -> str:
    """Empty when the cache must not be used: it is disabled, or the request is random, has choices or tools, or belongs
    to an evaluation."""
    sampling = question.sampling
    repeatable = sampling.temperature == 0 and question.choices == 1 and not sampling.logprobs
    if not plan.route.cache.enabled or not repeatable or question.tools or question.evaluation is not None:
        return ""
    day = prompts.today() if plan.template is not None and plan.template.uses_today else ""
    return cache.key(
        tenant=caller.tenant,
        groups=caller.groups,
        plan=f"{plan.digest}:{day}",
        sampling=sampling,
        search_options=question.search_options,
        output_format=question.output_format or types_pb2.OutputFormat(),
        messages=(*history, *messages),
    )
