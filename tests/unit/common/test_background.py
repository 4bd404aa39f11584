"""Work beside a block: it ends with the block, and its failure is heard of."""

from __future__ import annotations

import asyncio

import pytest

from genaifactory_common import background


async def test_work_runs_beside_the_block_and_has_ended_after_it() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            seen.append("begun")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async def block() -> None:
        async with background.running(work(), name="work"):
            await asyncio.sleep(0)
            assert seen == ["begun"]
            raise RuntimeError("of the block")

    with pytest.raises(RuntimeError, match="of the block"):
        await block()
    assert seen == ["begun", "ended"]


async def test_work_that_fails_is_in_the_log_and_the_block_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise OSError("no luck")

    async with background.running(work(), name="upkeep of things"):
        await asyncio.sleep(0.01)
        (record,) = caplog.records
        assert record.getMessage() == "upkeep of things failed and is not done any more"
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "no luck"


async def test_work_that_is_done_early_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with background.running(asyncio.sleep(0), name="short"):
        await asyncio.sleep(0.01)
    assert not caplog.records
