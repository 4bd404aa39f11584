"""python -m genaifactory_retriever: the retriever as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from genaifactory_common import runtime, specs
from genaifactory_common.telemetry import Telemetry
from genaifactory_retriever.app import NAME, create_app
from genaifactory_retriever.settings import Settings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = Settings()
    source = specs.Source.from_file(settings.factory_file)

    def create(telemetry: Telemetry) -> runtime.ServiceApp:
        app = create_app(settings, source, telemetry)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            async with app.lifespan():
                watching = asyncio.create_task(source.watch())
                try:
                    yield
                finally:
                    watching.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watching

        return replace(app, lifespan=lifespan)

    runtime.main(settings, create, NAME)


if __name__ == "__main__":
    main()
