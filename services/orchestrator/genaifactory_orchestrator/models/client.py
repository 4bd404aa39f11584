"""The model client: one answer from a chain of models, with retries and fallbacks.

    client = ModelClient(source, modelserver_channel, telemetry)
    async with client:
        attempts: list[Attempt] = []
        async with aclosing(client.generate(route.models, prompt, timeout_seconds=60, attempts=attempts)) as events:
            async for event in events: ...

No layer below retries: each attempt is one call of a server. A request that met a stopping replica is sent again at
once, whatever the model's `attempts`, and counts for the model's circuit only when that fails too. A model is retried
only before its first token. After it, the next model of the chain continues the answer from everything that was
yielded so far, so that the caller gets it once, without a gap or a repetition.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Self

import grpc.aio
from prometheus_client import Counter

from genaifactory_common import channels, errors, specs
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import FactoryError, InvalidArgument, Reason
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.models.attempts import Attempt, Try, record_skipped
from genaifactory_orchestrator.models.backend import Embeddings, Failure, Piece, Prompt, Remedy
from genaifactory_orchestrator.models.partial_answer import Draft, Event, Finished, Started
from genaifactory_orchestrator.models.resilience import Clock, Permit
from genaifactory_orchestrator.models.targets import Target, Targets

__all__ = ["Attempt", "Event", "Finished", "ModelClient", "Started"]

logger = logging.getLogger(__name__)

RETRIES_DENIED = Counter(
    "genaifactory_model_retries_denied_total", "Retries that the retry budget did not allow.", ["model"]
)
# A random wait up to this spreads requests that a replica has refused at the same time.
_RESEND_SECONDS = 0.1
_USAGE_GRACE_SECONDS = 2.0  # longest wait of a complete answer for its token counts
_SPARE_SECONDS = 1.0  # a backend's own timeout is longer than an attempt's by this, so that ours applies first


class ModelClient:
    """Calls the models of factory.yaml; use as an async context manager."""

    def __init__(
        self,
        source: specs.Source,
        modelserver: grpc.aio.Channel,
        telemetry: Telemetry,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """environ: holds the API keys that factory.yaml names. clock, sleep, rng: for backoff and circuits."""
        self._targets = Targets(source, modelserver, environ, clock)
        self._telemetry = telemetry
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # for load, not for security

    async def __aenter__(self) -> Self:
        await self._targets.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._targets.close()

    async def generate(
        self,
        chain: Sequence[str],
        prompt: Prompt,
        *,
        timeout_seconds: float,
        attempts: list[Attempt] | None = None,
        adapter: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Streams one answer from the first model of `chain` that works; raises FactoryError.

        Closing the generator cancels the call at the backend. Each attempt is appended to `attempts` when it ends, also
        when it failed or was cancelled; `pricing.total(a.cost for a in attempts)` is the total cost.

        adapter: answers in place of the models' own; they must be models of the model server.
        """
        deadline = self._deadline(timeout_seconds)
        draft = Draft(prompt, [] if attempts is None else attempts)
        failures: list[Failure] = []
        async with self._targets.use(tuple(chain), "chat", adapter) as targets:
            for target in targets:
                last = target is targets[-1]
                async with aclosing(self._answer_from(target, draft, deadline, last, failures)) as events:
                    async for event in events:
                        yield event
                draft.end_if_used_up()
                if draft.complete:
                    yield draft.finished()
                    return
                if (obstacle := draft.obstacle()) is not None:
                    raise errors.UpstreamFailed(
                        f"The model '{target.spec.name}' broke off in the middle of {obstacle}, "
                        "which no other model can continue; ask again."
                    )
        raise _verdict(failures, begun=draft.begun)

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_seconds: float, attempts: list[Attempt] | None = None
    ) -> Embeddings:
        """One vector for each text, from this model alone: another one's vectors are not comparable.

        Raises FactoryError. Each attempt is appended to `attempts`.
        """
        deadline = self._deadline(timeout_seconds)
        tries: list[Attempt] = [] if attempts is None else attempts
        async with self._targets.use((model,), "embedding") as (target,):
            target.budget.deposit()
            failed: list[Failure] = []
            while (permit := target.breaker.admit()) is not None:
                try:
                    with Try(target.spec, "embeddings", permit, tries, self._telemetry, first=not failed) as this:
                        with this.as_current():
                            embeddings = await self._embed_once(target, texts, deadline)
                        this.usage = embeddings.usage
                        return embeddings
                except Failure as failure:
                    failed.append(failure)
                wait = self._wait_seconds(target, failed, deadline, last=True)
                if wait is None:
                    break
                await self._sleep(wait)
            raise (failed[-1] if failed else _circuit_open(target, tries)).error

    async def _embed_once(self, target: Target, texts: Sequence[str], deadline: float) -> Embeddings:
        pace = _Pace(target.spec, self._clock, deadline)
        seconds = pace.seconds_left()
        try:
            async with asyncio.timeout(seconds):
                return await target.backend.embed(texts, timeout_seconds=seconds + _SPARE_SECONDS)
        except TimeoutError:
            raise pace.failure(whole=True) from None

    async def _answer_from(
        self, target: Target, draft: Draft, deadline: float, last: bool, failures: list[Failure]
    ) -> AsyncGenerator[Event, None]:
        """The answer, or its rest, from one model; ends without it when the next model should be called."""
        target.budget.deposit()
        failed: list[Failure] = []
        while True:
            if self._clock() >= deadline:
                raise _deadline_passed()
            permit = target.breaker.admit()
            if permit is None:
                failures.append(failed[-1] if failed else _circuit_open(target, draft.attempts))
                return
            events_before = draft.events
            try:
                async with aclosing(self._try(target, permit, draft, deadline, first=not failed)) as events:
                    async for event in events:
                        yield event
                return
            except Failure as failure:
                # An invalid request is the client's fault, and needs no operator.
                level = logging.INFO if isinstance(failure.error, InvalidArgument) else logging.WARNING
                logger.log(level, "model '%s' failed: %s", target.spec.name, failure.reason.value)
                # A fallback's prompt is not the client's request: its refusal is not the client's fault.
                if failure.remedy is Remedy.NONE and not (draft.begun and isinstance(failure.error, InvalidArgument)):
                    raise failure.error from None
                failed.append(failure)
                begun = draft.events > events_before
                wait = None if begun else self._wait_seconds(target, failed, deadline, last=last)
                if wait is None:
                    failures.append(failure)
                    return
            await self._sleep(wait)

    async def _try(
        self, target: Target, permit: Permit, draft: Draft, deadline: float, *, first: bool
    ) -> AsyncGenerator[Event, None]:
        """One call of one model; raises Failure."""
        spec, backend = target.spec, target.backend
        with Try(spec, "chat", permit, draft.attempts, self._telemetry, first=first) as this:
            part = draft.part(this, spec.name, continues_exactly=backend.continues_exactly)
            pace = _Pace(spec, self._clock, deadline)
            pieces = backend.generate(
                draft.remaining_prompt(), prefix=part.prefix, timeout_seconds=pace.seconds_left() + _SPARE_SECONDS
            )
            try:
                async with aclosing(pieces):
                    with this.as_current():
                        piece = await pace.next(pieces, draft)
                    while piece is not None:
                        for event in part.feed(piece):
                            yield event
                        piece = await pace.next(pieces, draft)
                for event in part.end():
                    yield event
                if not draft.complete:
                    error = errors.UpstreamFailed(f"The model '{spec.name}' broke off before the end of its answer.")
                    raise Failure(error, Remedy.RETRY)
            finally:
                part.settle()

    def _wait_seconds(self, target: Target, failed: Sequence[Failure], deadline: float, *, last: bool) -> float | None:
        """The wait before a retry at the model; None: no retry."""
        retry, failure = target.spec.retry, failed[-1]
        resend = failure.elsewhere and len(failed) == 1
        if failure.remedy is not Remedy.RETRY or (len(failed) >= retry.attempts and not resend):
            return None
        if resend:  # to another replica, without backoff
            wait = self._rng.uniform(0.0, min(_RESEND_SECONDS, retry.max_backoff_seconds))
        elif failure.retry_after_seconds is None:
            backoff = Backoff(retry.initial_backoff_seconds, retry.max_backoff_seconds)
            wait = backoff.seconds(len(failed), self._rng.uniform)
        else:
            # With another model in the chain there is no long wait.
            if not last and failure.retry_after_seconds > retry.max_backoff_seconds:
                return None
            wait = failure.retry_after_seconds + self._rng.uniform(0.0, retry.initial_backoff_seconds)
        if wait >= deadline - self._clock():
            return None
        if not target.budget.withdraw():
            RETRIES_DENIED.labels(target.spec.name).inc()
            return None
        return wait

    def _deadline(self, timeout_seconds: float) -> float:
        remaining = channels.remaining_seconds()
        return self._clock() + (timeout_seconds if remaining is None else min(timeout_seconds, remaining))


class _Pace:
    """The time limits of one attempt: until its first token, between two pieces, and in total."""

    def __init__(self, spec: specs.Model, clock: Clock, deadline: float) -> None:
        self._spec = spec
        self._clock = clock
        self._deadline = deadline
        now = clock()
        self._end = min(deadline, now + spec.timeout_seconds)
        self._next_by = min(self._end, now + spec.first_token_timeout_seconds)
        self._begun = False

    def seconds_left(self) -> float:
        """Until the end of the whole attempt."""
        return self._end - self._clock()

    async def next(self, pieces: AsyncGenerator[Piece, None], draft: Draft) -> Piece | None:
        """The next piece in time; None at the end. Raises Failure."""
        if self._begun:
            patience = _USAGE_GRACE_SECONDS if draft.complete else self._spec.idle_timeout_seconds
            self._next_by = min(self._end, self._clock() + patience)
        try:
            async with asyncio.timeout(self._next_by - self._clock()):
                piece = await anext(pieces, None)
        except TimeoutError:
            if draft.complete:
                return None
            raise self.failure() from None
        except Failure:
            if draft.complete:
                return None  # errors after the answer's end are ignored
            raise
        self._begun = True
        return piece

    def failure(self, *, whole: bool = False) -> Failure:
        """The failure for an exceeded limit. whole: of the whole attempt, and not of its next piece."""
        up = self._end if whole else self._next_by
        if up >= self._deadline:
            return Failure(_deadline_passed(), Remedy.NONE, unhealthy=False)
        name = self._spec.name
        if up >= self._end:
            what = f"The model '{name}' did not finish within {self._spec.timeout_seconds:g} s."
        elif self._begun:
            what = f"The model '{name}' sent nothing for {self._spec.idle_timeout_seconds:g} s."
        else:
            what = f"The model '{name}' did not begin within {self._spec.first_token_timeout_seconds:g} s."
        return Failure(errors.UpstreamFailed(what), Remedy.RETRY, reason=Reason.DEADLINE_EXCEEDED)


def _verdict(failures: Sequence[Failure], *, begun: bool) -> FactoryError:
    """The caller's error when no model could answer. failures: the last one of each model."""
    last = failures[-1].error
    if begun:
        return errors.UpstreamFailed(
            f"The answer broke off in its middle, and no other model could continue it. {last.message}"
        )
    if len(failures) == 1:
        return last
    refusals = [f.error for f in failures if isinstance(f.error, InvalidArgument | errors.Unimplemented)]
    if len(refusals) == len(failures):
        return refusals[0]
    waits = [f.error.retry_after_seconds for f in failures if f.error.retry_after_seconds is not None]
    retry_after_seconds = min(waits, default=None)
    if all(isinstance(f.error, errors.Overloaded) for f in failures):
        return errors.Overloaded("No model accepts more requests now.", retry_after_seconds=retry_after_seconds)
    return errors.UpstreamFailed(
        f"None of the {len(failures)} models that may answer works now; of the last: {last.message}",
        retry_after_seconds=retry_after_seconds,
    )


def _circuit_open(target: Target, attempts: list[Attempt]) -> Failure:
    record_skipped(target.spec, attempts)
    wait = target.breaker.retry_after_seconds()
    error = errors.UpstreamFailed(
        f"The model '{target.spec.name}' has failed too often and is not called for now.", retry_after_seconds=wait
    )
    return Failure(error, Remedy.RETRY, reason=Reason.UNAVAILABLE, unhealthy=False)


def _deadline_passed() -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded("The answer took longer than its deadline allows.")
