"""Runs the gateway as a process: python -m genaifactory_gateway."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaifactory_common import runtime, specs
from genaifactory_common.telemetry import Telemetry
from genaifactory_gateway.app import GatewayApp, connect, create_app
from genaifactory_gateway.settings import Settings


def main() -> None:
    """Serves until SIGTERM."""
    settings = Settings()
    source = specs.Source.from_file(settings.factory_file)
    runtime.main(settings, lambda telemetry: _following(settings, source, telemetry), "gateway")


def _following(settings: Settings, source: specs.Source, telemetry: Telemetry) -> GatewayApp:
    """The app with what a process of its own adds: channels that it closes, and a document that it follows."""
    to = connect(settings.upstreams)
    app = create_app(settings, source, to, telemetry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with to.orchestrator, to.monitor:
            watcher = asyncio.create_task(source.watch(), name="gateway-factory")
            try:
                async with app.lifespan():
                    yield
            finally:
                watcher.cancel()
                await asyncio.wait((watcher,))

    return dataclasses.replace(app, lifespan=lifespan)


if __name__ == "__main__":
    main()
