"""The memory budget that uploads share."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_retriever.budget import ByteBudget


async def started(budget: ByteBudget, size: int) -> asyncio.Task[None]:
    task = asyncio.create_task(budget.acquire(size))
    await asyncio.sleep(0)
    return task


async def test_an_upload_that_needs_more_than_is_left_waits() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    large, small = await started(budget, 8), await started(budget, 2)
    assert (large.done(), small.done()) == (False, False)  # the small one may not overtake: the large would starve
    budget.release(6)
    await asyncio.gather(large, small)


async def test_a_waiter_that_is_cancelled_delays_no_other() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    gone, next_ = await started(budget, 8), await started(budget, 4)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await next_
    budget.release(10)
    await budget.acquire(10)


async def test_a_waiter_that_is_cancelled_at_its_turn_releases_its_bytes() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    waiting = await started(budget, 10)
    budget.release(10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(budget.acquire(10), 1)
