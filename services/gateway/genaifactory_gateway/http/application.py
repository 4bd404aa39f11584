"""The ASGI application of the HTTP API: routes requests to the resources, and answers errors in one shape.

Each resource is a module of this package. Why there is no framework: docs/decisions/20-http-without-a-framework.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from genaifactory_common import specs
from genaifactory_common.errors import FactoryError, Internal, InvalidArgument, Unavailable
from genaifactory_common.telemetry import Telemetry
from genaifactory_gateway.http import cors
from genaifactory_gateway.http.exchange import Exchange, Receive, Send
from genaifactory_gateway.http.observation import observed
from genaifactory_gateway.http.paths import Handler, Handlers, Paths
from genaifactory_gateway.openai import responses
from genaifactory_gateway.settings import Http

logger = logging.getLogger(__name__)


class HttpApplication:
    """Answers HTTP requests."""

    def __init__(
        self,
        resources: Iterable[Handlers],
        cors: Callable[[], specs.Cors],
        settings: Http,
        service_telemetry: Telemetry,
    ) -> None:
        """cors: returns the configuration in force."""
        self._paths = Paths(*resources)
        self._cors = cors
        self._settings = settings
        self._telemetry = service_telemetry

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        exchange = Exchange(scope, receive, send, self._settings)
        exchange.cors = cors.headers(self._cors(), exchange)
        route, handlers = self._paths.find(exchange.path)
        with observed(exchange, route, self._telemetry):
            try:
                await self._answer(exchange, handlers)
            except FactoryError as error:
                await _fail(exchange, error)
            except asyncio.CancelledError:  # the drain has timed out: the task ends here, with an error for the client
                await _fail(exchange, Unavailable("The gateway is stopping; try again.", retry_after_seconds=1.0))
            except Exception:
                logger.exception("unexpected error in %s, request %s", route, exchange.request_id)
                await _fail(exchange, Internal(f"The platform made a mistake; its log has {exchange.request_id}."))

    async def _answer(self, exchange: Exchange, handlers: Mapping[str, Handler] | None) -> None:
        if handlers is None:
            raise self._paths.missing(exchange.path)
        if cors.is_preflight(exchange):
            await cors.preflight(self._cors(), exchange, handlers)
            return
        handler = handlers.get(exchange.method)
        if handler is None:
            allowed = ", ".join(sorted(handlers))
            exchange.error = InvalidArgument(f"This path supports {allowed} only.")
            body = responses.error_body(exchange.error)
            await exchange.respond(body, 405, headers=[(b"allow", allowed.encode())])
            return
        await handler(exchange)


async def _fail(exchange: Exchange, error: FactoryError) -> None:
    with contextlib.suppress(FactoryError):  # the client does not read the error either
        await exchange.fail(error)
