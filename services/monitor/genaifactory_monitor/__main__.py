"""python -m genaifactory_monitor: the monitor as a process."""

from __future__ import annotations

from genaifactory_common import runtime
from genaifactory_monitor.app import create_app
from genaifactory_monitor.settings import Settings


def main() -> None:
    """Runs until SIGTERM."""
    runtime.main("monitor", Settings, create_app)


if __name__ == "__main__":
    main()
