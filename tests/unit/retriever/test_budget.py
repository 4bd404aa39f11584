"""The memory that uploads share."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_retriever.budget import ByteBudget


async def started(budget: ByteBudget, size: int) -> asyncio.Task[None]:
    task = asyncio.create_task(budget.take(size))
    await asyncio.sleep(0)
    return task


async def test_who_asks_for_more_than_is_left_waits_for_a_turn() -> None:
    budget = ByteBudget(10)
    await budget.take(6)
    large, small = await started(budget, 8), await started(budget, 2)
    assert (large.done(), small.done()) == (False, False)  # the small one may not overtake: the large would starve
    budget.give_back(6)
    await asyncio.gather(large, small)


async def test_who_goes_away_while_waiting_holds_nobody_up() -> None:
    budget = ByteBudget(10)
    await budget.take(6)
    gone, next_ = await started(budget, 8), await started(budget, 4)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await next_
    budget.give_back(10)
    await budget.take(10)


async def test_who_goes_away_as_the_turn_comes_gives_it_back() -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = await started(budget, 10)
    budget.give_back(10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(budget.take(10), 1)
