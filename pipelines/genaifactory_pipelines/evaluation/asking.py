"""Asks the items of a golden set through the platform that serves: route, prompt, search, guardrails and engine.

Each answer is written down at once, so that an evaluation that was killed asks only what is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Protocol

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import (
    ContentBlocked,
    ContextTooLong,
    DeadlineExceeded,
    FactoryError,
    Internal,
    TooLarge,
    Unavailable,
    Unimplemented,
    UpstreamFailed,
)
from genaifactory_pipelines.evaluation import journal
from genaifactory_pipelines.evaluation.protocol import PRODUCTION, Answer, Candidate, Item
from genaifactory_pipelines.gateway import Patience

_IDS_PER_QUERY = 200
_RECORD_SECONDS = 30.0
_LOOK_SECONDS = 0.5
_FAILING_SECONDS = 60.0
_OF_THE_ITEM = (TooLarge, ContextTooLong, Unimplemented, Internal)
_OF_THE_MODEL = (UpstreamFailed, DeadlineExceeded)


class Platform(Protocol):
    """The calls of the gateway that asking needs."""

    def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
        """See Gateway."""
        ...

    async def recorded(self, request_ids: Sequence[str]) -> dict[str, monitor_pb2.Interaction]:
        """See Gateway."""
        ...

    def patience(self) -> Patience:
        """See Gateway."""
        ...


async def ask(
    platform: Platform,
    items: Sequence[Item],
    route: str,
    file: Path,
    *,
    run: str,
    candidate: Candidate = PRODUCTION,
    at_once: int = 4,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Answer]:
    """The answers by the item's id. An item that fails has an answer with an error; one that is blocked says so.

    file: the answers so far, JSON lines; an attempt goes on from it. run: names the evaluation in records. at_once:
    questions at a time. report: gets the number of answers so far. A platform that is away is waited for. Raises
    FactoryError when it stays away, and for a request that it refuses: that is no answer of the candidate's.
    """
    answers = await asyncio.to_thread(read, file)
    left = [item for item in items if item.id not in answers]
    places = asyncio.Semaphore(at_once)
    asking = _Asking(platform, route, types_pb2.Evaluation(run=run, **candidate.model_dump()))
    with await asyncio.to_thread(file.open, "ab") as output:

        async def one(item: Item) -> None:
            async with places:
                answers[item.id] = found = await asking.answer(item)
            await asyncio.to_thread(_append, output, item.id, found)
            report(len(answers))

        async with task_group() as group:
            for item in left:
                group.create_task(one(item))
    return await _completed(platform, {item.id: answers[item.id] for item in items})


class _Asking:
    """Asks the items of one evaluation."""

    def __init__(self, platform: Platform, route: str, evaluation: types_pb2.Evaluation) -> None:
        self._platform = platform
        self._route = route
        self._evaluation = evaluation
        self._failing = _Failing()

    async def answer(self, item: Item) -> Answer:
        """Raises FactoryError when the platform stays away or refuses the request."""
        request = gateway_pb2.ChatRequest(
            model=self._route,
            messages=item.messages,
            sampling=types_pb2.Sampling(temperature=0.0),
            evaluation=self._evaluation,
        )
        patience = self._platform.patience()
        failing = _Failing()
        while True:
            started = time.perf_counter()
            text, request_id, first = "", "", 0.0
            passages: Sequence[types_pb2.Passage] = ()
            try:
                async with aclosing(self._platform.chat(request)) as parts:
                    async for part in parts:
                        request_id = part.request_id
                        if part.HasField("delta"):
                            first = first or time.perf_counter() - started
                            text += part.delta
                        elif part.HasField("done"):
                            passages = part.done.passages
            except FactoryError as error:
                seconds = time.perf_counter() - started
                if isinstance(error, ContentBlocked):
                    return Answer("", blocked=True, seconds=seconds)
                too_long = [each.too_long(error, started) for each in (failing, self._failing)]
                if isinstance(error, _OF_THE_ITEM) or any(too_long):
                    return Answer("", error=error.reason, seconds=seconds)
                await patience.wait(error)
            else:
                self._failing.ended()
                seconds = time.perf_counter() - started
                return Answer(
                    text,
                    request_id=request_id,
                    passages=tuple(map(_text, passages)),
                    first_token_seconds=first,
                    seconds=seconds,
                )


class _Failing:
    """For how long a model fails that may only be restarting: for one question, or, while none is answered, for all."""

    def __init__(self) -> None:
        self._well = -math.inf
        """When it was last known not to be failing."""
        self._since: float | None = None

    def too_long(self, error: FactoryError, started: float) -> bool:
        """Whether to wait no longer, after one more error. A platform that is away is no failing of its models.

        started: the attempt, by time.perf_counter.
        """
        if not isinstance(error, _OF_THE_MODEL):
            if isinstance(error, Unavailable):
                self.ended()
            return False
        self._since = self._since or max(started, self._well)
        return time.perf_counter() - self._since > _FAILING_SECONDS

    def ended(self) -> None:
        """It has answered, or could not be asked."""
        self._well, self._since = time.perf_counter(), None


async def _completed(platform: Platform, answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The answers with what only the record has: the documents that were found, refusals, cost.

    Raises Unavailable when a record is still missing after half a minute: without it an answer would look as if
    nothing had been found.
    """
    ids = [answer.request_id for answer in answers.values() if answer.request_id]
    records: dict[str, monitor_pb2.Interaction] = {}
    until = time.monotonic() + _RECORD_SECONDS
    while missing := [request_id for request_id in ids if request_id not in records]:
        for start in range(0, len(missing), _IDS_PER_QUERY):
            records |= await platform.recorded(missing[start : start + _IDS_PER_QUERY])
        if len(records) < len(ids):
            if time.monotonic() > until:
                raise Unavailable(
                    f"{len(ids) - len(records)} answers are not on record after {_RECORD_SECONDS:.0f} s. Check monitor."
                )
            await asyncio.sleep(_LOOK_SECONDS)
    return {
        name: _with_record(answer, records[answer.request_id]) if answer.request_id else answer
        for name, answer in answers.items()
    }


def _text(passage: types_pb2.Passage) -> str:
    """With its title and headings, of which one is often the other."""
    return "\n".join(dict.fromkeys((passage.title, *passage.headings, passage.text)))


def _with_record(answer: Answer, record: monitor_pb2.Interaction) -> Answer:
    output = [verdict for verdict in record.verdicts if verdict.direction == types_pb2.DIRECTION_OUTPUT]
    return dataclasses.replace(
        answer,
        documents=tuple(passage.document_id for passage in record.passages),
        entities=tuple(sorted({finding.entity_type for verdict in output for finding in verdict.findings})),
        policy=next((verdict.policy for verdict in output), ""),
        blocked=record.outcome == monitor_pb2.OUTCOME_BLOCKED,
        refused=record.refused,
        cost_micros=record.cost_micros,
    )


def _append(output: IO[bytes], name: str, answer: Answer) -> None:
    journal.append(output, {"item": name, **dataclasses.asdict(answer)})


def read(file: Path) -> dict[str, Answer]:
    """The answers that `ask` has written to a file, by the item's id, without what only the record has. Blocks."""
    return {
        line.pop("item"): Answer(**{name: _value(value) for name, value in line.items()}) for line in journal.read(file)
    }


def _value(value: object) -> Any:
    return tuple(value) if isinstance(value, list) else value
