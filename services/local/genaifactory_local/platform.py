"""All six services in this process (with vLLM, the model server in another), on unix sockets, wired as in a cluster."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from pydantic import SecretStr

import genaifactory_gateway.app as gateway
import genaifactory_modelserver.app as modelserver
import genaifactory_monitor.app as monitor
import genaifactory_orchestrator.app as orchestrator
import genaifactory_retriever.app as retriever
import genaifactory_safety.app as safety
from genaifactory_common import channels, runtime, settings, specs
from genaifactory_common.engine_specs import Vllm
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.tokens import Signer
from genaifactory_gateway.settings import Http, Upstreams
from genaifactory_gateway.settings import Settings as GatewaySettings
from genaifactory_local import local_model, model_process
from genaifactory_local.state import Endpoints, State, service_address
from genaifactory_modelserver.settings import Settings as ModelserverSettings
from genaifactory_monitor.settings import Settings as MonitorSettings
from genaifactory_orchestrator.settings import Settings as OrchestratorSettings
from genaifactory_retriever.settings import Settings as RetrieverSettings
from genaifactory_safety.settings import Settings as SafetySettings

logger = logging.getLogger(__name__)

DEFAULT_TELEMETRY = settings.Telemetry()


@dataclass(frozen=True)
class Options:
    """How a platform is run."""

    http_port: int = 8080
    """0: any free one."""
    grpc_port: int = 8081
    host: str = "127.0.0.1"
    telemetry: settings.Telemetry = DEFAULT_TELEMETRY
    drain_seconds: float = 5.0
    """How long running answers may finish after a stop."""


@asynccontextmanager
async def running(
    state: State,
    sockets: Path,
    source: specs.Source,
    signer: Signer,
    options: Options,
    *,
    before_gateway: Callable[[], Awaitable[None]] | None = None,
    report: model_process.Report = logger.info,
) -> AsyncIterator[Endpoints]:
    """Runs the six services inside the block, each after those that it calls; stops them in reverse.

    sockets: a private folder with a short path. before_gateway: awaited when the gateway serves gRPC on its socket
    there, before its ports are open. report: called with the progress of a model's loading. A model server with vLLM
    is a process of its own. Raises OSError when a port is taken, FactoryError when a store cannot be opened.
    """
    tracing = options.telemetry
    if tracing.otlp_endpoint is None:
        tracing = tracing.model_copy(update={"spans_file": tracing.spans_file or state.spans_file})
    async with AsyncExitStack() as stack:

        async def telemetry(name: str) -> Telemetry:
            service_telemetry = await asyncio.to_thread(Telemetry, name, tracing)
            stack.push_async_callback(asyncio.to_thread, service_telemetry.close)
            return service_telemetry

        async def serve(app: ServiceApp, server: settings.Server) -> grpc.aio.Channel:
            address = await stack.enter_async_context(runtime.running(app, server))
            return await stack.enter_async_context(channels.connect(address))

        def where(name: str) -> dict[str, Any]:
            return {
                "server": settings.Server(address=service_address(sockets, name), drain_seconds=options.drain_seconds),
                "telemetry": tracing,
                "context_public_key": signer.public_key,
            }

        of_monitor = MonitorSettings(**where("monitor"), data_dir=state.data("monitor"))
        to_monitor = await serve(monitor.create_app(of_monitor, await telemetry("monitor")), of_monitor.server)

        of_safety = SafetySettings(**where("safety"))
        to_safety = await serve(safety.create_app(of_safety, source, await telemetry("safety")), of_safety.server)

        if any(isinstance(engine, Vllm) for engine in source.current.engines):
            to_modelserver = await stack.enter_async_context(
                model_process.running(
                    (await asyncio.to_thread(local_model.python)).path,
                    state,
                    sockets,
                    source,
                    signer,
                    telemetry=tracing,
                    drain_seconds=options.drain_seconds,
                    report=report,
                )
            )
        else:
            of_modelserver = ModelserverSettings(**where("modelserver"), data_dir=state.data("modelserver"))
            to_modelserver = await serve(
                modelserver.create_app(of_modelserver, source, await telemetry("modelserver")), of_modelserver.server
            )

        of_retriever = RetrieverSettings(
            **where("retriever"), data_dir=state.data("retriever"), model_cache_dir=state.data("modelserver")
        )
        to_retriever = await serve(
            retriever.create_app(of_retriever, source, await telemetry("retriever")), of_retriever.server
        )

        of_orchestrator = OrchestratorSettings(**where("orchestrator"), data_dir=state.data("orchestrator"))
        to_orchestrator = await serve(
            orchestrator.create_app(
                of_orchestrator,
                source,
                orchestrator.Channels(
                    safety=to_safety, retriever=to_retriever, modelserver=to_modelserver, monitor=to_monitor
                ),
                await telemetry("orchestrator"),
            ),
            of_orchestrator.server,
        )

        of_gateway = GatewaySettings(
            server=settings.Server(
                address=f"{options.host}:{options.grpc_port}",
                drain_seconds=options.drain_seconds,
                quiet_seconds=0,  # clients have no other replica
            ),
            telemetry=tracing,
            http=Http(address=f"{options.host}:{options.http_port}"),
            upstreams=Upstreams(modelserver=service_address(sockets, "modelserver")),
            context_private_key=SecretStr(base64.b64encode(signer.private_key).decode()),
        )
        to = gateway.Channels(
            orchestrator=to_orchestrator, monitor=to_monitor, retriever=to_retriever, safety=to_safety
        )
        of_itself = await telemetry("gateway")
        await serve(gateway.create_private_app(of_gateway, source, to, of_itself), where("gateway")["server"])
        if before_gateway is not None:
            await before_gateway()
        gateway_app = gateway.create_app(of_gateway, source, to, of_itself)
        grpc_address = await stack.enter_async_context(runtime.running(gateway_app, of_gateway.server))
        yield Endpoints(
            pid=os.getpid(),
            http_url=f"http://{gateway_app.http_address()}",
            grpc_address=grpc_address,
            sockets=str(sockets),
            tenant=source.current.tenants[0].name,
            factory=str(source.path or ""),
            collector=tracing.otlp_endpoint or "",
        )
