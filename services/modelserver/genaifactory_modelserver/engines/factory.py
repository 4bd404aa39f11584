"""Makes the engine of an entry of factory.yaml."""

from __future__ import annotations

from importlib import import_module

from genaifactory_common import specs
from genaifactory_common.engine_specs import AnyEngine
from genaifactory_modelserver.engines.protocol import Engine
from genaifactory_modelserver.settings import Settings


def make_engine(entry: AnyEngine, settings: Settings, source: specs.Source) -> Engine:
    """The engine of an entry, in this process: the server's own, or a replica's on Ray.

    An engine is the module beside this one that has the name of its type, with a function `make` of these arguments.
    It is imported when an entry asks for it, since its libraries are large.
    """
    module = import_module(f"{__package__}.{entry.type}")
    engine: Engine = module.make(entry, settings, source)
    return engine
