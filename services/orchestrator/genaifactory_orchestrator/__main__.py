"""python -m genaifactory_orchestrator: the orchestrator as a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from genaifactory_common import channels, runtime, specs
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.app import Channels, create_app
from genaifactory_orchestrator.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    runtime.main("orchestrator", Settings, _create)


def _create(settings: Settings, telemetry: Telemetry) -> ServiceApp:
    """The app of a process of its own, which opens and closes its channels."""
    upstreams = settings.upstreams
    connect = partial(channels.connect, tls=upstreams.tls, patience_seconds=upstreams.patience_seconds)
    to = Channels(
        safety=connect(upstreams.safety),
        retriever=connect(upstreams.retriever),
        modelserver=connect(upstreams.modelserver, patience_seconds=upstreams.modelserver_patience_seconds),
        monitor=connect(upstreams.monitor),
    )
    app = create_app(settings, specs.Source.from_file(settings.factory_file), to, telemetry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with to.safety, to.retriever, to.modelserver, to.monitor, app.lifespan():
            yield

    return replace(app, lifespan=lifespan)


if __name__ == "__main__":
    main()
