"""The wiring of the gateway, for its pod, for `genaifactory run` and for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2_grpc
from genaifactory_common import background, channels, specs
from genaifactory_common.followed import Followed
from genaifactory_common.passes import Issued
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.telemetry import Telemetry
from genaifactory_common.tokens import Signer
from genaifactory_gateway.adapters import Adapters
from genaifactory_gateway.admission import SERVICE, Admission
from genaifactory_gateway.batches.store import BatchStore
from genaifactory_gateway.batches.worker import Worker
from genaifactory_gateway.counts import Counts
from genaifactory_gateway.documents import Documents
from genaifactory_gateway.gate import GrpcGate
from genaifactory_gateway.guardrails import Guardrails
from genaifactory_gateway.health import Health
from genaifactory_gateway.http.application import HttpApplication
from genaifactory_gateway.http.batches import HttpBatches
from genaifactory_gateway.http.chat import HttpChat
from genaifactory_gateway.http.conversations import HttpConversations
from genaifactory_gateway.http.documents import HttpDocuments
from genaifactory_gateway.http.embeddings import HttpEmbeddings
from genaifactory_gateway.http.feedback import HttpFeedback
from genaifactory_gateway.http.files import HttpFiles
from genaifactory_gateway.http.interactions import HttpInteractions
from genaifactory_gateway.http.models import HttpModels
from genaifactory_gateway.http.probes import HttpProbes
from genaifactory_gateway.http.server import HttpServer
from genaifactory_gateway.http.usage import HttpUsage
from genaifactory_gateway.indexes import Indexes
from genaifactory_gateway.limits import Limiter
from genaifactory_gateway.quotas import MemoryQuotas, QuotaStore, Unlimited
from genaifactory_gateway.records import Records
from genaifactory_gateway.servicer import GatewayServicer, Parts
from genaifactory_gateway.settings import Settings, Upstreams
from genaifactory_gateway.transfers import Transfers
from genaifactory_gateway.uploads import Uploads
from genaifactory_gateway.upstream import Channels, Upstream

__all__ = ["Channels", "GatewayApp", "connect", "create_app", "create_private_app"]


@dataclass(frozen=True)
class GatewayApp(ServiceApp):
    """The gateway's gRPC server, with an HTTP server beside it."""

    http_address: Callable[[], str] = field(kw_only=True)
    """HOST:PORT of the HTTP server; the real port once the app runs."""


def create_app(
    settings: Settings,
    source: specs.Source,
    to: Channels,
    telemetry: Telemetry,
    *,
    quotas: QuotaStore | None = None,
) -> GatewayApp:
    """The gateway over the given channels. quotas: for tests with a clock of their own."""
    signer = settings.signer()
    parts = _parts(settings, source, to, signer, quotas or MemoryQuotas())
    admission, upstream = parts.admission, parts.upstream
    batches = BatchStore(
        to.monitor,
        timeout_seconds=settings.upstreams.record_timeout_seconds,
        transfer_seconds=settings.transfers.timeout_seconds,
    )
    worker = Worker(admission, upstream, batches, settings.batch_worker, telemetry.tracer)
    health = Health(to, timeout_seconds=settings.upstreams.health_timeout_seconds)
    resources = [
        HttpChat(admission, upstream).handlers(),
        HttpConversations(admission, upstream).handlers(),
        HttpEmbeddings(admission, upstream).handlers(),
        HttpModels(admission).handlers(),
        HttpFeedback(admission, upstream).handlers(),
        HttpUsage(admission, upstream).handlers(),
        HttpDocuments(admission, parts.documents, parts.uploads, settings.http).handlers(),
        HttpInteractions(admission, parts.records).handlers(),
        HttpFiles(admission, batches, parts.transfers).handlers(),
        HttpBatches(admission, batches, worker).handlers(),
        HttpProbes(health).handlers(),
    ]
    application = HttpApplication(resources, lambda: admission.factory.cors, settings.http, telemetry)
    server = HttpServer(settings.http)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with (
            server.listening(application, drain_seconds=settings.server.drain_seconds),
            background.running(health.watch(), name="gateway-health"),
            background.running(signer.watch(), name="gateway-signing-key"),
            background.running(worker.forever(), name="gateway-batches"),
        ):
            yield

    return GatewayApp(
        name="gateway",
        telemetry=telemetry,
        service_names=(SERVICE,),
        register=partial(_register, parts),
        lifespan=lifespan,
        ready=lambda: health.ready,
        drain=server.drain,
        gate=_gate(settings, admission),
        factory=source,
        http_address=lambda: server.address,
    )


def create_private_app(settings: Settings, source: specs.Source, to: Channels, telemetry: Telemetry) -> ServiceApp:
    """The gRPC API alone, for work on a platform that is starting, before its clients are admitted.

    For a unix socket that only its owner can open. It requires API keys as the gateway does, and applies no limits of
    tenants.
    """
    parts = _parts(settings, source, to, settings.signer(), Unlimited())
    return ServiceApp(
        name="gateway",
        telemetry=telemetry,
        service_names=(SERVICE,),
        register=partial(_register, parts),
        lifespan=contextlib.nullcontext,
        gate=_gate(settings, parts.admission),
    )


def _gate(settings: Settings, admission: Admission) -> GrpcGate:
    seconds = settings.http.body_timeout_seconds
    return GrpcGate(admission, max_calls=settings.server.max_concurrent_calls, read_seconds=seconds)


def _parts(
    settings: Settings, source: specs.Source, to: Channels, signer: Followed[Signer], quotas: QuotaStore
) -> Parts:
    upstreams = settings.upstreams
    transfers = Transfers(settings.transfers)
    return Parts(
        admission=Admission(
            source,
            Issued(signer, longest_seconds=settings.context_token_seconds),
            Limiter(quotas),
            max_concurrent_requests=settings.max_concurrent_requests,
            max_body_bytes=settings.max_body_bytes_at_once,
        ),
        upstream=Upstream(
            to,
            record_timeout_seconds=upstreams.record_timeout_seconds,
            conversations_timeout_seconds=upstreams.conversations_timeout_seconds,
        ),
        documents=Documents(to.retriever, timeout_seconds=upstreams.documents_timeout_seconds),
        transfers=transfers,
        uploads=Uploads(to.retriever, transfers),
        indexes=Indexes(
            to.retriever,
            timeout_seconds=upstreams.documents_timeout_seconds,
            build_timeout_seconds=settings.transfers.timeout_seconds,
        ),
        records=Records(to.monitor, transfers, timeout_seconds=upstreams.record_timeout_seconds),
        guardrails=Guardrails(to.safety, timeout_seconds=upstreams.check_timeout_seconds),
        adapters=Adapters(upstreams.modelserver, upstreams.tls, timeout_seconds=settings.transfers.timeout_seconds),
        counts=Counts(to, timeout_seconds=upstreams.record_timeout_seconds),
    )


def _register(parts: Parts, grpc_server: grpc.aio.Server) -> None:
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(GatewayServicer(parts), grpc_server)


def connect(upstreams: Upstreams) -> Channels:
    """Channels to the services of the settings. Raises InvalidArgument for wrong certificates."""
    patience = upstreams.patience_seconds
    return Channels(
        orchestrator=channels.connect(upstreams.orchestrator, upstreams.tls, patience_seconds=patience),
        monitor=channels.connect(upstreams.monitor, upstreams.tls, patience_seconds=patience),
        retriever=channels.connect(upstreams.retriever, upstreams.tls, patience_seconds=patience),
        safety=channels.connect(upstreams.safety, upstreams.tls, patience_seconds=patience),
    )
