"""/v1/usage: requests, tokens and cost."""

from __future__ import annotations

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from genaifactory_gateway.admission import Admission
from genaifactory_gateway.http import query as http_query
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers
from genaifactory_gateway.openai import responses
from genaifactory_gateway.upstream import Upstream


class HttpUsage:
    """Returns usage: the tenant's with the permission 'usage', the key's own without it."""

    def __init__(self, admission: Admission, to: Upstream) -> None:
        self._admission = admission
        self._upstream = to

    def handlers(self) -> Handlers:
        """By path and method."""
        return {"/v1/usage": {"GET": self._usage}}

    async def _usage(self, exchange: Exchange) -> None:
        async with self._admission.admit(
            exchange.authorization, "GetUsage", exchange.request_id, exchange.entered
        ) as entry:
            start, end = _period(exchange.query)
            rows = await self._upstream.usage(entry, start, end)
            data = [
                {
                    "object": "usage",
                    "day": row.day,
                    "key_id": row.key_id,
                    "model": row.model,
                    "requests": row.requests,
                    "errors": row.errors,
                    **responses.usage(row.usage),
                    "cost_micros": row.cost_micros,
                    "currency": row.currency,
                }
                for row in rows
            ]
            await exchange.respond(orjson.dumps({"object": "list", "data": data}))


def _period(query: bytes) -> tuple[Timestamp | None, Timestamp | None]:
    given = http_query.parameters(query, ("start_time", "end_time"))
    return http_query.moment("start_time", given["start_time"]), http_query.moment("end_time", given["end_time"])
