"""python -m genaifactory_retriever: the retriever as a process."""

from __future__ import annotations

from genaifactory_common import runtime, specs
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_retriever.app import NAME, create_app
from genaifactory_retriever.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    runtime.main(NAME, Settings, _create)


def _create(settings: Settings, telemetry: Telemetry) -> ServiceApp:
    return create_app(settings, specs.Source.from_file(settings.factory_file), telemetry)


if __name__ == "__main__":
    main()
