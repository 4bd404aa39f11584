"""Work that runs while a block of code runs; and work that a cancellation must not interrupt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Runs `work` while the block runs; at the end of the block, cancels it and waits for its end.

    A failure of the work is logged at once, since nothing awaits it; the block continues without it.
    """
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def to_the_end(work: Awaitable[T], *, cancelled: Callable[[], None] | None = None) -> T:
    """What `work` returns. A cancellation of the caller takes effect only when the work has ended.

    For what must not be done by halves: a write, a transaction, a thread that cannot be stopped. The work must bound
    its own time. cancelled: called at the first cancellation, for example to signal a thread to stop.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it
        raise


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed and does not run any more", task.get_name(), exc_info=error)
