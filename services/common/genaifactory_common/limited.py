"""Calls of the gateway that wait and are repeated when it refuses them because of a limit or its load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from genaifactory_common import channels
from genaifactory_common.errors import Overloaded, RateLimited

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

_MOST_SECONDS = 120.0


async def unary(method: Callable[..., Awaitable[Response]], request: Request, *, timeout_seconds: float) -> Response:
    """As channels.unary, repeated as by `retried`."""
    return await retried(lambda: channels.unary(method, request, timeout_seconds=timeout_seconds))  # type: ignore[arg-type]


async def retried(call: Callable[[], Awaitable[Result]]) -> Result:
    """Returns the call's result; repeats it after the pause that its refusal names, for two minutes at most.

    call: may be repeated after RateLimited and Overloaded. Raises FactoryError.
    """
    waited = 0.0
    while True:
        try:
            return await call()
        except (RateLimited, Overloaded) as error:
            pause = error.retry_after_seconds
            if pause is None or waited + pause > _MOST_SECONDS:
                raise
            waited += pause
            await asyncio.sleep(pause)
