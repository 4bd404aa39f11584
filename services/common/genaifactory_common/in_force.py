"""Metrics of the factory.yaml that a process follows: which is in force, since when, whether it is the file's."""

from __future__ import annotations

from prometheus_client import Gauge

INFO = Gauge(
    "genaifactory_configuration_info", "1 for the factory.yaml in force, by the SHA-256 of its text.", ["digest"]
)
LOADED = Gauge("genaifactory_configuration_loaded_timestamp_seconds", "When the factory.yaml in force was taken over.")
REFUSED = Gauge(
    "genaifactory_configuration_refused", "1 while the file holds a document that was refused, else 0. Alert on it."
)


def report(digest: str) -> None:
    """The document of this digest is in force from now on, and it is the file's."""
    INFO.clear()
    INFO.labels(digest).set(1)
    LOADED.set_to_current_time()
    REFUSED.set(0)


def refused() -> None:
    """The file holds another document than the one in force."""
    REFUSED.set(1)
