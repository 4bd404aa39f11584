"""Work beside a block ends with the block, and its failure is logged; `to_the_end` is not interrupted."""

from __future__ import annotations

import asyncio
import gc

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


async def test_a_failure_of_the_work_is_logged_and_the_block_continues(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise OSError("no luck")

    async with background.running(work(), name="upkeep of things"):
        await asyncio.sleep(0.01)
        (record,) = caplog.records
        assert record.getMessage() == "upkeep of things failed and does not run any more"
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "no luck"


async def test_work_that_ends_before_the_block_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with background.running(asyncio.sleep(0), name="short"):
        await asyncio.sleep(0.01)
    assert not caplog.records


class _Write:
    """A write that ends once `may_end` is set, with an error if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), False
        self._error = error

    async def run(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "written"


async def test_work_to_the_end_returns_and_raises_what_the_work_does() -> None:
    write = _Write()
    write.may_end.set()
    assert await background.to_the_end(write.run()) == "written"
    write = _Write(OSError("no luck"))
    write.may_end.set()
    with pytest.raises(OSError, match="no luck"):
        await background.to_the_end(write.run())


@pytest.mark.parametrize("error", [None, OSError("no luck")], ids=["works", "fails"])
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_caller_that_is_cancelled_any_number_of_times_waits_for_the_end_of_the_work(
    times: int, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    write, called = _Write(error), []
    calling = asyncio.create_task(background.to_the_end(write.run(), cancelled=lambda: called.append("cancelled")))
    await write.begun.wait()
    assert called == []
    for _ in range(times):
        calling.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not calling.done()
    assert called == ["cancelled"]
    write.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert write.ended
    del calling, write
    gc.collect()
    assert not caplog.records  # asyncio logs errors that are never retrieved
