"""python -m genaifactory_modelserver: the model server as a process of its own."""

from __future__ import annotations

from genaifactory_common import runtime, specs
from genaifactory_common.errors import FactoryError
from genaifactory_modelserver.app import NAME, create_app
from genaifactory_modelserver.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    settings = Settings()
    try:
        source = specs.Source.from_file(settings.factory_file)
        runtime.main(settings, lambda telemetry: create_app(settings, source, telemetry), NAME)
    except FactoryError as error:
        raise SystemExit(error.message) from None


if __name__ == "__main__":
    main()
