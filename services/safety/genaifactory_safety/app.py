"""Builds the guardrail service: the policies of factory.yaml and the scan threads, behind gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from genaifactory.safety.v1 import safety_pb2, safety_pb2_grpc
from genaifactory_common import specs
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_safety.policies import Catalogue, Policies, catalogue
from genaifactory_safety.servicer import SafetyServicer
from genaifactory_safety.settings import Settings
from genaifactory_safety.workers import Workers

NAME = "safety"


def create_app(
    settings: Settings, source: specs.Source, telemetry: Telemetry, *, recognisers: Catalogue | None = None
) -> ServiceApp:
    """The service. Raises InvalidArgument when no key is set that verifies callers' tokens.

    recognisers: None: the platform's own.
    """
    policies = Policies(source, recognisers if recognisers is not None else catalogue())
    workers = Workers(settings.scan)

    def register(server: grpc.aio.Server) -> None:
        safety_pb2_grpc.add_SafetyServiceServicer_to_server(SafetyServicer(policies, workers), server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            yield
        finally:
            workers.close()

    return ServiceApp(
        name=NAME,
        telemetry=telemetry,
        service_names=(safety_pb2.DESCRIPTOR.services_by_name["SafetyService"].full_name,),
        register=register,
        lifespan=lifespan,
        verifier=settings.verifier(),
        factory=source,
    )
