"""python -m genaifactory_gateway: the gateway as a process."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaifactory_common import runtime, specs
from genaifactory_common.telemetry import Telemetry
from genaifactory_gateway.app import GatewayApp, connect, create_app
from genaifactory_gateway.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    runtime.main("gateway", Settings, _create)


def _create(settings: Settings, telemetry: Telemetry) -> GatewayApp:
    """The app, with channels that it closes."""
    to = connect(settings.upstreams)
    app = create_app(settings, specs.Source.from_file(settings.factory_file), to, telemetry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with to.orchestrator, to.monitor, to.retriever, to.safety, app.lifespan():
            yield

    return dataclasses.replace(app, lifespan=lifespan)


if __name__ == "__main__":
    main()
