"""Structured concurrency that raises single exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaifactory_common.errors import ContentBlocked, FactoryError


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """asyncio.TaskGroup that raises the most important failure instead of a group: a block, then an unexpected
    exception, then any FactoryError."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise min(_leaves(group), key=_weight) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _weight(error: BaseException) -> int:
    if isinstance(error, ContentBlocked):
        return 0
    return 2 if isinstance(error, FactoryError) else 1
