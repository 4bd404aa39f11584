"""/healthz, /readyz and /metrics: for Kubernetes and Prometheus, without a key."""

from __future__ import annotations

import asyncio

import orjson
import prometheus_client

from genaifactory_gateway.health import Health
from genaifactory_gateway.http.exchange import Exchange
from genaifactory_gateway.http.paths import Handlers


class HttpProbes:
    """Whether the gateway runs, whether it can answer, and its metrics."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def handlers(self) -> Handlers:
        """By path and method."""
        return {
            "/healthz": {"GET": self._alive},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
        }

    async def _alive(self, exchange: Exchange) -> None:
        await exchange.respond(b'{"status":"alive"}')

    async def _ready(self, exchange: Exchange) -> None:
        states = await self._health.check()
        can_answer = self._health.can_answer
        body = orjson.dumps({"status": "ready" if can_answer else "not ready", "upstreams": states})
        await exchange.respond(body, 200 if can_answer else 503)

    async def _metrics(self, exchange: Exchange) -> None:
        text = await asyncio.to_thread(prometheus_client.generate_latest)
        kind = prometheus_client.CONTENT_TYPE_LATEST.encode()
        await exchange.respond(text, headers=[(b"content-type", kind)])
