"""The engine without weights, which quotes the given documents."""

from __future__ import annotations

from genaifactory_common import engine_specs, specs
from genaifactory_modelserver.engines.protocol import Engine
from genaifactory_modelserver.settings import Settings


def make(spec: engine_specs.Extractive, settings: Settings, source: specs.Source) -> Engine:
    """The engine of an entry."""
    from genaifactory_modelserver.engines.extractive.engine import Extractive

    return Extractive(spec)
