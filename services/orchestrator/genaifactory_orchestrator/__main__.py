"""python -m genaifactory_orchestrator: the orchestrator as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from genaifactory_common import channels, runtime, specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.app import Channels, create_app
from genaifactory_orchestrator.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    settings = Settings()
    if settings.context_public_key is None:
        raise SystemExit("GENAIFACTORY_CONTEXT_PUBLIC_KEY must be set: it checks who a call is for.")
    try:
        source = specs.Source.from_file(settings.factory_file)
        runtime.main(settings, lambda telemetry: _create(settings, source, telemetry), "orchestrator")
    except InvalidArgument as error:
        raise SystemExit(error.message) from None


def _create(settings: Settings, source: specs.Source, telemetry: Telemetry) -> ServiceApp:
    upstreams = settings.upstreams
    connected = Channels(
        safety=channels.connect(upstreams.safety, upstreams.tls),
        retriever=channels.connect(upstreams.retriever, upstreams.tls),
        modelserver=channels.connect(upstreams.modelserver, upstreams.tls),
        monitor=channels.connect(upstreams.monitor, upstreams.tls),
    )
    app = create_app(settings, source, connected, telemetry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for channel in (connected.safety, connected.retriever, connected.modelserver, connected.monitor):
                stack.push_async_callback(channel.close)
            watching = asyncio.create_task(source.watch())
            stack.push_async_callback(asyncio.wait, [watching])
            stack.callback(watching.cancel)
            await stack.enter_async_context(app.lifespan())
            yield

    return replace(app, lifespan=lifespan)


if __name__ == "__main__":
    main()
