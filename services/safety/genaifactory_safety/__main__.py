"""python -m genaifactory_safety: the guardrails as a process of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from genaifactory_common import runtime, specs
from genaifactory_common.errors import FactoryError
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_safety.app import NAME, create_app
from genaifactory_safety.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    settings = Settings()
    try:
        source = specs.Source.from_file(settings.factory_file)
        runtime.main(settings, lambda telemetry: _create(settings, source, telemetry), NAME)
    except FactoryError as error:
        raise SystemExit(error.message) from None


def _create(settings: Settings, source: specs.Source, telemetry: Telemetry) -> ServiceApp:
    app = create_app(settings, source, telemetry)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with app.lifespan():
            watching = asyncio.create_task(source.watch(), name="factory-watch")
            try:
                yield
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching

    return replace(app, lifespan=lifespan)


if __name__ == "__main__":
    main()
