"""Reads the JSON body of an HTTP request as one of the models of OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from genaifactory_gateway import openai_requests
from genaifactory_gateway.http_exchange import Exchange

_Body = TypeVar("_Body", bound=openai_requests.Body)

# A body that takes longer to check than a turn of the event loop should last is checked in a thread.
_LARGE_BODY_BYTES = 64 << 10


async def read(exchange: Exchange, model: type[_Body]) -> _Body:
    """The body as `model`; errors from behind the gateway name its fields from then on. Raises FactoryError."""
    data = await exchange.body()
    if len(data) > _LARGE_BODY_BYTES:
        body = await asyncio.to_thread(openai_requests.read, model, data)
    else:
        body = openai_requests.read(model, data)
    exchange.named = lambda field: openai_requests.named_as_sent(field, body)
    return body
