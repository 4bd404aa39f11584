"""Reads the JSON body of an HTTP request as one of the models of OpenAI's API."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.openai import fields, requests
from genaifactory_gateway.openai.content import Body

_Body = TypeVar("_Body", bound=Body)

# A larger body is parsed in a thread, since it would block the event loop for too long; one at a time, since each
# thread takes its turn of the interpreter before the event loop.
_LARGE_BODY_BYTES = 64 << 10
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="gateway-body")


async def read(exchange: Exchange, model: type[_Body]) -> _Body:
    """The body as `model`. The response then lists its fields without effect, and errors of the services name its
    fields as they were sent. Raises FactoryError."""
    data = await exchange.body()
    strict = exchange.strict
    if len(data) > _LARGE_BODY_BYTES:
        parse = partial(fields.read, model, data, strict=strict)
        body, exchange.ignored = await asyncio.get_running_loop().run_in_executor(_PARSER, parse)
    else:
        body, exchange.ignored = fields.read(model, data, strict=strict)
    exchange.named = lambda field: requests.named_as_sent(field, body)
    return body
