"""Builds the orchestrator: its objects, opened before the first call and closed after the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory_common import background, channels, specs, stored
from genaifactory_common.runtime import ServiceApp
from genaifactory_common.space import Space
from genaifactory_common.telemetry import Telemetry
from genaifactory_orchestrator.answers.guardrail import Guard
from genaifactory_orchestrator.answers.pipeline import Answerer
from genaifactory_orchestrator.answers.retrieval import Retrieval
from genaifactory_orchestrator.answers.routes import Plans
from genaifactory_orchestrator.answers.tasks import registry
from genaifactory_orchestrator.embedding import Embedder
from genaifactory_orchestrator.models.client import ModelClient
from genaifactory_orchestrator.servicer import OrchestratorServicer
from genaifactory_orchestrator.settings import Settings
from genaifactory_orchestrator.stores.cache import Cache
from genaifactory_orchestrator.stores.conversations import Conversations
from genaifactory_orchestrator.stores.outbox import Outbox, Send

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Channels:
    """Channels to the services that the orchestrator calls; their creator closes them."""

    safety: grpc.aio.Channel
    retriever: grpc.aio.Channel
    modelserver: grpc.aio.Channel
    monitor: grpc.aio.Channel


def create_app(settings: Settings, source: specs.Source, channels: Channels, telemetry: Telemetry) -> ServiceApp:
    """The orchestrator."""
    models = ModelClient(source, channels.modelserver, telemetry)
    space = Space("orchestrator", settings.data_dir, settings.space)
    outbox = Outbox(
        settings.data_dir / "outbox.db",
        settings.outbox,
        space,
        _sender(channels.monitor, timeout_seconds=settings.timeouts.record_seconds),
    )
    answers = Cache(settings.data_dir / "cache.db", settings.cache, space)
    conversations = Conversations(settings)
    retrieval = Retrieval(channels.retriever, timeout_seconds=settings.timeouts.search_seconds)
    answerer = Answerer(
        Plans(source),
        Guard(channels.safety, timeout_seconds=settings.timeouts.check_seconds),
        registry.make_tasks(retrieval, telemetry),
        models,
        answers,
        conversations,
        outbox,
        telemetry,
    )
    embedder = Embedder(source, models, outbox, timeout_seconds=settings.timeouts.embed_seconds)
    servicer = OrchestratorServicer(answerer, embedder, conversations)

    async def counts() -> list[stored.Stored]:
        return [stored.Stored(tenant, "conversations", count) for tenant, count in await conversations.counts()]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for store in (conversations, answers, outbox):
                await store.open()
                stack.push_async_callback(store.close)
            await stack.enter_async_context(stored.reported(source, "conversations", counts))
            await stack.enter_async_context(models)
            for name, work, seconds in (
                ("cache-upkeep", answers.upkeep, settings.cache.upkeep_seconds),
                ("conversations-upkeep", conversations.delete_old, settings.conversations.upkeep_seconds),
            ):
                await stack.enter_async_context(background.running(_repeated(work, seconds), name=name))
            yield

    return ServiceApp(
        name="orchestrator",
        telemetry=telemetry,
        service_names=(orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name,),
        register=lambda server: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, server),
        lifespan=lifespan,
        verifier=settings.verifier(),
        factory=source,
        space=space,
    )


def _sender(monitor: grpc.aio.Channel, *, timeout_seconds: float) -> Send:
    stub = monitor_pb2_grpc.MonitorServiceStub(monitor)

    async def send(interactions: list[monitor_pb2.Interaction]) -> None:
        request = monitor_pb2.RecordInteractionsRequest(interactions=interactions)
        await channels.unary(stub.RecordInteractions, request, timeout_seconds=timeout_seconds)

    return send


async def _repeated(work: Callable[[], Awaitable[None]], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            await work()
        except Exception:  # the next round may work; every request reports a broken store
            logger.exception("upkeep failed")
