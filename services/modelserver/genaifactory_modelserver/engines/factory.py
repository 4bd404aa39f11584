"""Makes the engine of an entry of factory.yaml."""

from __future__ import annotations

from pathlib import Path

from genaifactory_common import engine_specs, specs
from genaifactory_common.engine_specs import AnyEngine
from genaifactory_modelserver.engines.extractive.engine import Extractive
from genaifactory_modelserver.engines.protocol import Engine
from genaifactory_modelserver.settings import Settings


def make_engine(entry: AnyEngine, settings: Settings, source: specs.Source) -> Engine:
    """The engine of an entry, in this process: the server's own, or a replica's on Ray."""
    match entry:
        case engine_specs.Extractive():
            return Extractive(entry)
        case engine_specs.MiniLM():
            from genaifactory_modelserver.engines.minilm import MiniLMEngine

            return MiniLMEngine(entry, settings.data_dir)
        case engine_specs.Fake():
            from genaifactory_modelserver.engines.fake import FakeEngine

            script_file = Path(entry.script_file) if entry.script_file is not None else None
            return FakeEngine(models=entry.models, script_file=script_file)
        case engine_specs.Vllm():
            from genaifactory_modelserver.engines.vllm import adapter_engine

            return adapter_engine.make(entry, settings, source)
