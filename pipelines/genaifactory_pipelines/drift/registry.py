"""All signals: a new one is a module in `signals`, and nothing else names it."""

from __future__ import annotations

from genaifactory_pipelines import modules
from genaifactory_pipelines.drift import signals
from genaifactory_pipelines.drift.protocol import Signal


def make_signals() -> list[Signal]:
    """Each signal, in the order of what may drift."""
    found: list[Signal] = list(modules.made(signals))
    return sorted(found, key=lambda signal: ("inputs", "retrieval", "outputs", "quality").index(signal.group))
