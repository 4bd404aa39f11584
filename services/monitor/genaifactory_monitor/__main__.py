"""Runs the monitor as a process of its own: python -m genaifactory_monitor."""

from genaifactory_common import runtime
from genaifactory_monitor.app import create_app
from genaifactory_monitor.settings import Settings


def main() -> None:
    """Serves until SIGTERM."""
    settings = Settings()
    runtime.main(settings, lambda telemetry: create_app(settings, telemetry), "monitor")


if __name__ == "__main__":
    main()
