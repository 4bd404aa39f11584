"""The worker beside the servers: leases batches and lines from monitor, and answers a few lines at once.

A line is answered as the key that made its batch, with what the key may do at that moment: the same admission, limits,
guardrails and record as for a request over HTTP. It has less right than these: none is begun while the gateway is busy
or the tenant's limits are nearly used up.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Tracer
from prometheus_client import Counter, Gauge

from genaifactory.monitor.v1 import batches_pb2
from genaifactory_common import background, batch_lines, telemetry
from genaifactory_common.backoff import Backoff
from genaifactory_common.concurrency import task_group
from genaifactory_common.errors import (
    Cancelled,
    DeadlineExceeded,
    FactoryError,
    Internal,
    Overloaded,
    RateLimited,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from genaifactory_gateway.admission import Admission, Entry
from genaifactory_gateway.batches import requests
from genaifactory_gateway.batches.check import KEY_REMOVED, Check
from genaifactory_gateway.batches.requests import Answer
from genaifactory_gateway.batches.store import BatchStore
from genaifactory_gateway.settings import BatchWorker as Settings
from genaifactory_gateway.upstream import Upstream

logger = logging.getLogger(__name__)

RUNNING = Gauge("genaifactory_batch_lines_running", "Lines of batches being answered.")
RELEASED = Counter("genaifactory_batch_lines_released_total", "Lines given back to be answered later.", ["reason"])

_CALL_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=30.0)
_LINE_BACKOFF = Backoff(first_seconds=2.0, longest_seconds=600.0)
# A monitor of the former version, during an update.
_WITHOUT_BATCHES_SECONDS = 60.0
_PAUSE_SECONDS = 5.0
# What is still done for a line when the worker is stopped.
_STOP_SECONDS = 2.0
# After this a result that cannot be stored is dropped; the line is answered again.
_STORE_SECONDS = 3600.0
# Failures of the platform, or of a token whose time has passed.
_PASSING = (Unavailable, DeadlineExceeded, Internal, Cancelled, Unauthenticated)


@dataclass(frozen=True)
class _GivenBack:
    """A line that is to be answered later."""

    reason: str
    """Of the metric."""
    failed: bool = False
    """Whether it counts as an attempt."""
    delay_seconds: float = 0.0
    """It is not answered earlier."""


class Worker:
    """Answers batches until it is cancelled."""

    def __init__(
        self, admission: Admission, to: Upstream, store: BatchStore, settings: Settings, tracer: Tracer
    ) -> None:
        self._admission = admission
        self._upstream = to
        self._store = store
        self._settings = settings
        self._tracer = tracer
        self._name = uuid.uuid4().hex
        """Of this process, as the one that checks batches."""
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._leases = collections.Counter[str]()
        """The name of a claim of lines -> how many of them are being answered."""
        self._new = asyncio.Event()
        """Set when a batch was made here."""
        self._due = asyncio.Event()
        """Set when a line has ended, or lines may be there."""
        self._paused_until = 0.0
        self._waiting: dict[str, float] = {}
        """Tenants whose limits are nearly used up -> until when, on the monotonic clock."""

    def soon(self) -> None:
        """A batch was made: it is checked without a wait for the next look."""
        self._new.set()

    async def forever(self) -> None:
        """Works. A failure of monitor delays it and never ends it."""
        if not self._settings.max_concurrent:
            return
        otel_context.attach(telemetry.unrecorded())  # this task's own context, which its lines leave
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew_forever())
            tasks.create_task(self._check_forever())
            failures = 0
            while True:
                self._due.clear()  # before the look, so that what happens during it is not missed
                try:
                    name = uuid.uuid4().hex  # of this claim: what it leases is not renewed when it fails
                    claimed = await self._claim(name, self._places())
                    failures = 0
                except FactoryError as error:
                    failures += 1
                    await self._delay(error, failures)
                    continue
                for line in claimed.lines:
                    self._leases[name] += 1
                    tasks.create_task(self._work(claimed.batch, line, name))
                if not claimed.lines or not self._places():
                    await _until(self._due, self._settings.poll_seconds)  # or the end of a line

    def _places(self) -> int:
        running = self._leases.total()
        slots = self._admission.slots
        busy = slots.used - running >= self._settings.busy_share * slots.whole
        if busy or time.monotonic() < self._paused_until:
            return 0
        return self._settings.max_concurrent - running

    async def _claim(self, name: str, places: int) -> batches_pb2.ClaimLinesResponse:
        if places <= 0:
            return batches_pb2.ClaimLinesResponse()
        now = time.monotonic()
        self._waiting = {tenant: until for tenant, until in self._waiting.items() if until > now}
        request = batches_pb2.ClaimLinesRequest(
            worker=name, lease_ms=self._lease_ms, lines=places, except_tenants=self._waiting
        )
        claimed: batches_pb2.ClaimLinesResponse = await self._store.call(request)
        return claimed

    async def _delay(self, error: FactoryError, failures: int) -> None:
        if isinstance(error, Unimplemented):
            await asyncio.sleep(_WITHOUT_BATCHES_SECONDS)
            return
        if failures == 1:
            logger.warning("batches wait, since monitor gives no lines: %s", error.message)
        await asyncio.sleep(_CALL_BACKOFF.seconds(failures))

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            async with asyncio.TaskGroup() as tasks:
                for name in self._leases:
                    tasks.create_task(self._renew(name))

    async def _renew(self, name: str) -> None:
        try:
            await self._store.call(batches_pb2.ClaimLinesRequest(worker=name, lease_ms=self._lease_ms))
        except FactoryError as error:
            logger.debug("leases of lines could not be renewed: %s", error.message)

    async def _check_forever(self) -> None:
        failures = 0
        while True:
            self._new.clear()
            try:
                found = await self._check_one()
                failures = 0
            except FactoryError as error:
                failures += 1
                await self._delay(error, failures)
                continue
            if not found:
                await _until(self._new, self._settings.poll_seconds)

    async def _check_one(self) -> bool:
        """Checks a batch that nobody checks; False: there is none."""
        request = batches_pb2.ClaimBatchRequest(worker=self._name, lease_ms=self._lease_ms)
        claimed: batches_pb2.ClaimBatchResponse = await self._store.call(request)
        if not claimed.HasField("batch"):
            return False
        check = Check(claimed.batch, self._store, self._name, self._lease_ms)
        async with task_group() as tasks:  # a task of its own, whose caller is the batch's key
            tasks.create_task(check.run(self._admission, f"req-{uuid.uuid4().hex}"))
        self._due.set()
        return True

    async def _work(self, batch: batches_pb2.Batch, line: batches_pb2.Line, name: str) -> None:
        RUNNING.inc()
        try:
            request_id = batch_lines.request_id(line.batch_id, line.number, line.attempts)
            attributes = {"genaifactory.request_id": request_id, "genaifactory.tenant": batch.tenant}
            with self._tracer.start_as_current_span(
                "batch line",
                context=Context(),
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                outcome = await self._outcome(batch, line, name, request_id)
                if isinstance(outcome, _GivenBack):
                    await self._release(line, name, outcome)
                    return
                if isinstance(outcome, FactoryError):
                    telemetry.mark_failed(span, outcome)
                await self._keep(line, request_id, outcome)
        except Exception:  # it would end the worker; the line is free when its lease ends
            logger.exception("unexpected error in a batch")
        finally:
            RUNNING.dec()
            self._leases[name] -= 1
            if not self._leases[name]:
                del self._leases[name]
            self._due.set()

    async def _outcome(
        self, batch: batches_pb2.Batch, line: batches_pb2.Line, name: str, request_id: str
    ) -> Answer | FactoryError | _GivenBack:
        """The line's answer, or the error that is its result; or why it is to be answered later."""
        tenant, rpc = batch.tenant, requests.RPCS[batch.endpoint]
        try:
            self._admission.holder(tenant, batch.key_id)
        except Unauthenticated as error:
            await self._fail_batch(batch, error)
            return _GivenBack(KEY_REMOVED)
        try:
            async with self._admission.admit_batch(tenant, batch.key_id, rpc, request_id) as entry:
                await self._leave_room(entry)
                return await requests.answer(entry, self._upstream, batch.endpoint, line.body)
        except asyncio.CancelledError:
            # What was interrupted has a record of its own, so the next answer is another attempt.
            await self._release(line, name, _GivenBack("stopped", failed=True))
            raise
        except RateLimited as error:
            if error.retry_after_seconds is None:
                return error  # it can never fit
            self._waiting[tenant] = time.monotonic() + error.retry_after_seconds
            return _GivenBack("rate_limited")
        except Overloaded as error:
            seconds = error.retry_after_seconds or _PAUSE_SECONDS
            self._paused_until = time.monotonic() + seconds
            return _GivenBack("overloaded", delay_seconds=seconds)
        except _PASSING as error:
            failure: FactoryError = error
        except FactoryError as error:
            return error
        except Exception:
            logger.exception("unexpected error in a batch, request %s", request_id)
            failure = Internal(f"The platform made a mistake; its log has {request_id}.")
        if line.attempts + 1 >= self._settings.max_attempts:
            return failure
        delay_seconds = _LINE_BACKOFF.seconds(line.attempts + 1)
        return _GivenBack(failure.reason.value.lower(), failed=True, delay_seconds=delay_seconds)

    async def _leave_room(self, entry: Entry) -> None:
        """Raises RateLimited while the tenant has used up all but the share that is left to its other requests."""
        for kind, state in (await entry.limits()).items():
            if state.remaining < self._settings.reserved_share * state.limit:
                raise RateLimited(
                    f"The tenant's {kind} are nearly used up; its batches wait.",
                    retry_after_seconds=min(_PAUSE_SECONDS, state.reset_seconds),
                )

    async def _keep(self, line: batches_pb2.Line, request_id: str, outcome: Answer | FactoryError) -> None:
        """Stores the result, also when the worker is stopped meanwhile: it was paid for."""
        result, failed = requests.result(line.batch_id, line.number, line.custom_id, request_id, outcome)
        request = batches_pb2.StoreResultRequest(
            batch_id=line.batch_id, number=line.number, result=result, failed=failed
        )
        if isinstance(outcome, Answer):
            request.usage.CopyFrom(outcome.usage)
            request.cost_micros, request.currency = outcome.cost_micros, outcome.currency
        failures, until = 0, time.monotonic() + _STORE_SECONDS
        while time.monotonic() < until:
            try:
                await background.to_the_end(self._store.call(request))
                return
            except FactoryError as error:
                failures += 1
                if failures == 1:
                    logger.warning("the result of request %s cannot be stored yet: %s", request_id, error.message)
                await asyncio.sleep(_CALL_BACKOFF.seconds(failures))

    async def _release(self, line: batches_pb2.Line, name: str, why: _GivenBack) -> None:
        """Gives the line back. Where monitor cannot be reached, the line is free when its lease ends."""
        RELEASED.labels(why.reason).inc()
        request = batches_pb2.ReleaseLineRequest(
            worker=name,
            batch_id=line.batch_id,
            number=line.number,
            attempts=line.attempts + why.failed,
            delay_ms=round(why.delay_seconds * 1000),
        )
        await _within(_STOP_SECONDS, self._store.call(request))

    async def _fail_batch(self, batch: batches_pb2.Batch, error: FactoryError) -> None:
        failure = batches_pb2.BatchError(code=KEY_REMOVED, message=error.message)
        await _within(
            _STOP_SECONDS, self._store.call(batches_pb2.FailBatchRequest(batch_id=batch.batch_id, error=failure))
        )


async def _within(seconds: float, call: Awaitable[Any]) -> None:
    """Awaits a call to monitor whose failure the end of a lease makes good."""
    try:
        async with asyncio.timeout(seconds):
            await call
    except (FactoryError, TimeoutError):
        return


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Waits for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
