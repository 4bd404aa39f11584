"""Work beside a block ends with the block, and its failure is heard of; work to the end is not cut short."""

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


class _Write:
    """A write that can be let go on, and that fails if it is to."""

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


async def test_work_to_the_end_gives_what_it_returns_and_raises() -> None:
    write = _Write()
    write.may_end.set()
    assert await background.to_the_end(write.run()) == "written"
    write = _Write(OSError("no luck"))
    write.may_end.set()
    with pytest.raises(OSError, match="no luck"):
        await background.to_the_end(write.run())


@pytest.mark.parametrize("error", [None, OSError("no luck")], ids=["works", "fails"])
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_caller_that_is_cancelled_however_often_waits_for_the_end_of_the_work(
    times: int, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    write, told = _Write(error), []
    calling = asyncio.create_task(background.to_the_end(write.run(), cancelled=lambda: told.append("cancelled")))
    await write.begun.wait()
    assert told == []
    for _ in range(times):
        calling.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not calling.done()
    assert told == ["cancelled"]
    write.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert write.ended
    del calling, write
    gc.collect()
    assert not caplog.records  # such as of an error that nobody has asked for
