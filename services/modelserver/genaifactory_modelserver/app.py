"""The wiring of the model server: engines out of the settings, each with its bound, behind the gRPC service."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import specs
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_modelserver import settings as modelserver_settings
from genaifactory_modelserver.engine import Engine
from genaifactory_modelserver.extractive import Extractive
from genaifactory_modelserver.servicer import ModelServicer
from genaifactory_modelserver.serving import Serving
from genaifactory_modelserver.settings import EngineSettings, Settings
from genaifactory_modelserver.slots import Slots

NAME = "modelserver"


def create_app(
    settings: Settings, source: specs.Source, telemetry: Telemetry, *, engines: Sequence[Engine] | None = None
) -> ServiceApp:
    """The service. Raises InvalidArgument when there is no key to check callers with.

    source: every service gets it; no engine of today reads factory.yaml.
    engines: served instead of those that the settings' list would make, one for each entry (tests).
    """
    engines = engines or [_engine(each, settings) for each in settings.engines]
    bounded = [
        (engine, Slots(engine.name, max_running=each.max_running, max_queued=each.max_queued))
        for engine, each in zip(engines, settings.engines, strict=True)
    ]
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
        verifier=settings.verifier(),
    )


def _engine(settings: EngineSettings, server: Settings) -> Engine:
    match settings:
        case modelserver_settings.Extractive():
            return Extractive(settings)
        case modelserver_settings.MiniLM():
            from genaifactory_modelserver.embedding import MiniLMEngine

            return MiniLMEngine(settings, server.data_dir)
        case modelserver_settings.Fake():
            from genaifactory_modelserver.fake import FakeEngine

            return FakeEngine(models=settings.models, script_file=settings.script_file)
