"""The wiring of the model server: engines out of factory.yaml, each with its bound, behind the gRPC service."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import specs
from genaifactory_common.engine_specs import AnyEngine
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver.engines.factory import make_engine
from genaifactory_modelserver.engines.protocol import Engine
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


def _engine(entry: AnyEngine, settings: Settings, source: specs.Source) -> Engine:
    if entry.ray is None:
        return make_engine(entry, settings, source)
    from genaifactory_modelserver.engines.ray import engine

    return engine.make(entry, settings, source)


def _bound(entry: AnyEngine) -> AnyEngine:
    if entry.ray is None:
        return entry
    return entry.model_copy(update={"max_running": entry.max_running * entry.ray.max_replicas})
