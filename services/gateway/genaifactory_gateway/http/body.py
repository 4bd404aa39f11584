"""Reads the JSON body of an HTTP request as one of the models of OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.openai import fields, requests
from genaifactory_gateway.openai.content import Body

_Body = TypeVar("_Body", bound=Body)

# A larger body is parsed in a thread, since it would block the event loop for too long.
_LARGE_BODY_BYTES = 64 << 10


async def read(exchange: Exchange, model: type[_Body]) -> _Body:
    """The body as `model`. The response then lists its fields without effect, and errors of the services name its
    fields as they were sent. Raises FactoryError."""
    data = await exchange.body()
    strict = exchange.strict
    if len(data) > _LARGE_BODY_BYTES:
        body, exchange.ignored = await asyncio.to_thread(fields.read, model, data, strict=strict)
    else:
        body, exchange.ignored = fields.read(model, data, strict=strict)
    exchange.named = lambda field: requests.named_as_sent(field, body)
    return body
