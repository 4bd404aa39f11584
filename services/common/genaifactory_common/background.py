"""Work beside a block of code, for as long as the block lasts; and work that a cancellation must not cut short."""

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
    """Runs `work` while the block runs; when that is left, cancels it and waits for its end.

    Work that fails is logged when it does, since nobody awaits it; the block goes on without it.
    """
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def to_the_end(work: Awaitable[T], *, cancelled: Callable[[], None] | None = None) -> T:
    """What `work` returns. However often its caller is cancelled, that goes on only when the work has ended.

    For what half of would do harm: a write, a transaction, a thread that cannot be stopped. The work has a bound of
    its own on how long it takes. cancelled: called at the first cancellation, such as to ask a thread to stop.
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
            task.exception()  # nobody is left to hear of it
        raise


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed and is not done any more", task.get_name(), exc_info=error)
