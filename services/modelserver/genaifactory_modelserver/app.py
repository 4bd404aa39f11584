"""The wiring of the model server: engines out of factory.yaml, each with its bound, behind the gRPC service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import engine_specs, specs
from genaifactory_common.engine_specs import AnyEngine
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver.engine import Engine
from genaifactory_modelserver.extractive import Extractive
from genaifactory_modelserver.servicer import ModelServicer
from genaifactory_modelserver.serving import Serving
from genaifactory_modelserver.settings import Settings
from genaifactory_modelserver.slots import Slots

NAME = "modelserver"


def create_app(
    settings: Settings, source: specs.Source, telemetry: Telemetry, *, engines: Sequence[Engine] | None = None
) -> ServiceApp:
    """The service. Raises InvalidArgument when there is no key to check callers with.

    engines: served instead of those that factory.yaml's list would make, one for each entry (tests).
    """
    entries = source.current.engines
    engines = engines or [_engine(entry, settings, source) for entry in entries]
    bounded = [(engine, Slots(engine.name, _bound(entry))) for engine, entry in zip(engines, entries, strict=True)]
    serving = Serving(bounded, telemetry)

    def register(server: grpc.aio.Server) -> None:
        modelserver_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(serving, max_embedding_characters=settings.max_embedding_characters), server
        )

    return ServiceApp(
        name=NAME,
        telemetry=telemetry,
        service_names=(modelserver_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,),
        register=register,
        lifespan=serving.running,
        ready=serving.ready,
        alive=serving.alive,
        serves_while_opening=True,
        verifier=settings.verifier(),
        factory=source,
    )


def make_engine(entry: AnyEngine, settings: Settings, source: specs.Source) -> Engine:
    """The engine of an entry, in this process: the server's own, or a replica's on Ray."""
    match entry:
        case engine_specs.Extractive():
            return Extractive(entry)
        case engine_specs.MiniLM():
            from genaifactory_modelserver.embedding import MiniLMEngine

            return MiniLMEngine(entry, settings.data_dir)
        case engine_specs.Fake():
            from genaifactory_modelserver.fake import FakeEngine

            script_file = Path(entry.script_file) if entry.script_file is not None else None
            return FakeEngine(models=entry.models, script_file=script_file)
        case engine_specs.Vllm():
            from genaifactory_modelserver import vllm_engine

            return vllm_engine.make(entry, settings, source)


def _engine(entry: AnyEngine, settings: Settings, source: specs.Source) -> Engine:
    if entry.ray is None:
        return make_engine(entry, settings, source)
    from genaifactory_modelserver import ray_engine

    return ray_engine.make(entry, settings, source)


def _bound(entry: AnyEngine) -> AnyEngine:
    if entry.ray is None:
        return entry
    return entry.model_copy(update={"max_running": entry.max_running * entry.ray.max_replicas})
