"""Calls of a gateway that refuses what is too much for now: they wait for as long as it says, and are made again."""

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
    """As channels.unary."""
    return await patiently(lambda: channels.unary(method, request, timeout_seconds=timeout_seconds))  # type: ignore[arg-type]


async def patiently(call: Callable[[], Awaitable[Result]]) -> Result:
    """What the call returns, made again after a pause while it is refused as too much, for two minutes at most.

    call: may be made again when it raised RateLimited or Overloaded. Raises FactoryError.
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
