"""Places at an engine: bounds, order, and places of those who leave."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_common.engine_specs import Extractive
from genaifactory_common.errors import Overloaded, RateLimited
from genaifactory_modelserver.engines.protocol import Priority
from genaifactory_modelserver.slots import Slots


async def turn() -> None:
    """Lets every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """A task that takes a place, notes that it has it, and keeps it until told."""

    def __init__(self, slots: Slots, log: list[str], name: str, priority: Priority = Priority.INTERACTIVE) -> None:
        self._leave = asyncio.Event()

        async def hold() -> None:
            async with slots.place(priority, "acme"):
                log.append(name)
                await self._leave.wait()

        self.task = asyncio.create_task(hold())

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def test_interactive_requests_go_before_batch_and_equals_in_order() -> None:
    slots = Slots("e", Extractive(max_running=1, max_queued=9))
    log: list[str] = []
    first = Holder(slots, log, "first")
    await turn()
    waiting = []
    for name, priority in (("b1", Priority.BATCH), ("i1", Priority.INTERACTIVE), ("b2", Priority.BATCH), ("i2", 0)):
        waiting.append(Holder(slots, log, name, Priority(priority)))
        await turn()
    for holder in (first, waiting[1], waiting[3], waiting[0], waiting[2]):
        await turn()
        await holder.leave()
    assert log == ["first", "i1", "i2", "b1", "b2"]


async def test_one_who_gives_up_waiting_leaves_its_place_in_the_queue_to_others() -> None:
    slots = Slots("e", Extractive(max_running=1, max_queued=1))
    log: list[str] = []
    first = Holder(slots, log, "first")
    await turn()
    for _ in range(100):  # the queue holds one; without tidying the second would be refused
        impatient = Holder(slots, log, "impatient")
        await turn()
        impatient.task.cancel()
        await asyncio.wait([impatient.task])
    last = Holder(slots, log, "last")
    await turn()
    with pytest.raises(Overloaded):
        async with slots.place(Priority.INTERACTIVE, "acme"):
            raise AssertionError("full")
    await first.leave()
    await turn()
    await last.leave()
    assert log == ["first", "last"]


async def test_a_place_given_to_one_who_leaves_at_that_moment_goes_to_the_next() -> None:
    slots = Slots("e", Extractive(max_running=1, max_queued=2))
    log: list[str] = []
    first = Holder(slots, log, "first")
    await turn()
    leaving, next_one = Holder(slots, log, "leaving"), Holder(slots, log, "next")
    await turn()
    first._leave.set()
    await asyncio.sleep(0)  # first runs and passes its place on; its new owner has not run yet
    leaving.task.cancel()
    await turn()
    assert log == ["first", "next"]
    await next_one.leave()
    async with slots.place(Priority.BATCH, "acme"):
        pass


async def test_the_time_to_retry_grows_with_the_queue_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots("e", Extractive(max_running=1, max_queued=0))
    monkeypatch.setattr(slots, "_mean_seconds", 500.0)
    async with slots.place(Priority.INTERACTIVE, "acme"):
        with pytest.raises(Overloaded) as raised:
            async with slots.place(Priority.INTERACTIVE, "acme"):
                raise AssertionError("full")
    assert raised.value.retry_after_seconds == 30


async def test_a_tenant_that_has_as_many_as_it_may_is_told_to_wait_while_others_are_served() -> None:
    slots = Slots("e", Extractive(max_running=2, max_queued=5, max_per_tenant=1))
    async with slots.place(Priority.INTERACTIVE, "acme"):
        with pytest.raises(RateLimited, match="1 requests at the engine 'e'") as raised:
            async with slots.place(Priority.INTERACTIVE, "acme"):
                raise AssertionError("beyond the tenant's share")
        async with slots.place(Priority.INTERACTIVE, "other"):
            pass
    assert raised.value.retry_after_seconds == 1
    async with slots.place(Priority.INTERACTIVE, "acme"):
        pass


async def test_a_request_that_waits_counts_as_its_tenants() -> None:
    slots = Slots("e", Extractive(max_running=1, max_queued=5, max_per_tenant=2))
    log: list[str] = []
    first, waiting = Holder(slots, log, "first"), Holder(slots, log, "waiting")
    await turn()
    with pytest.raises(RateLimited):
        async with slots.place(Priority.INTERACTIVE, "acme"):
            raise AssertionError("beyond the tenant's share")
    await first.leave()
    await turn()
    await waiting.leave()
    assert log == ["first", "waiting"]
