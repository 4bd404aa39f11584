"""Metrics of the factory.yaml that a process follows: which is in force, since when, and whether the file's is."""

from __future__ import annotations

from prometheus_client import Gauge

INFO = Gauge(
    "genaifactory_configuration_info", "1 for the factory.yaml in force, by the SHA-256 of its text.", ["digest"]
)
LOADED = Gauge("genaifactory_configuration_loaded_timestamp_seconds", "When the factory.yaml in force was loaded.")
REFUSED = Gauge(
    "genaifactory_configuration_refused", "1 while the file holds a document that was refused, else 0. Alert on it."
)


def report(digest: str) -> None:
    """Reports that the document of this digest is in force now, and that the file holds it."""
    INFO.clear()
    INFO.labels(digest).set(1)
    LOADED.set_to_current_time()
    REFUSED.set(0)


def refused() -> None:
    """Reports that the file holds another document than the one in force."""
    REFUSED.set(1)
