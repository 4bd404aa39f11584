"""The platform as the pipelines see it: its gateway, whose restarts and refusals they wait out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory.monitor.v1 import monitor_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, client, settings
from genaifactory_common.backoff import Backoff
from genaifactory_common.errors import DeadlineExceeded, FactoryError, NotFound, Overloaded, RateLimited, Unavailable
from genaifactory_pipelines.anonymiser import Direction

Result = TypeVar("Result")

PATIENCE_SECONDS = 600.0
"""How long a step waits for a platform that is away or refuses, since it last answered."""

_EXPORT_TIMEOUT_SECONDS = 3600.0
_CHECK_TIMEOUT_SECONDS = 120.0
_EMBED_TIMEOUT_SECONDS = 120.0
_CHAT_TIMEOUT_SECONDS = 300.0
_QUERY_TIMEOUT_SECONDS = 30.0
_ADAPTER_TIMEOUT_SECONDS = 3600.0  # a download may be long; the gateway's own bound ends it before
_BUILD_TIMEOUT_SECONDS = 6 * 3600.0
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=15.0)
_DIRECTIONS: dict[Direction, types_pb2.Direction.ValueType] = {
    "input": types_pb2.DIRECTION_INPUT,
    "output": types_pb2.DIRECTION_OUTPUT,
}
PASSING = (Unavailable, RateLimited, Overloaded, DeadlineExceeded)
"""Errors that may pass by waiting."""

LOCAL_ADDRESS = "127.0.0.1:8081"
"""Of the gateway that `genaifactory run` starts."""


@asynccontextmanager
async def connected(address: str = LOCAL_ADDRESS) -> AsyncIterator[Gateway]:
    """The gateway that the environment of a pod names, else the one at an address of this machine.

    Raises InvalidArgument for a wrong environment.
    """
    own = await asyncio.to_thread(settings.load, client.Settings)
    if own.cluster is not None:
        channel = own.cluster.connected(own.key())
    else:
        channel = channels.connect(address, api_key=own.api_key.get_secret_value() if own.api_key else "")
    async with channel:
        yield Gateway(channel)


class Gateway:
    """Calls of the gateway that are repeated while the platform is away."""

    def __init__(self, channel: grpc.aio.Channel, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.channel = channel
        """To the gateway, with the key."""
        self._stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        self._patience_seconds = patience_seconds

    async def export(
        self, wanted: monitor_pb2.InteractionFilter
    ) -> AsyncGenerator[gateway_pb2.ExportInteractionsResponse, None]:
        """Interactions of the key's tenant, with their feedback, as JSON lines, oldest first. Raises FactoryError.

        It is not repeated by itself: only the reader knows from where to go on.
        """
        request = gateway_pb2.ExportInteractionsRequest(filter=wanted)
        call = channels.stream(self._stub.ExportInteractions, request, timeout_seconds=_EXPORT_TIMEOUT_SECONDS)
        async with aclosing(call) as pieces:
            async for piece in pieces:
                yield piece

    async def check(self, texts: Sequence[str], policy: str, direction: Direction) -> list[str | None]:
        """See anonymiser.Checker; waits while the platform is away."""
        checked = await self._checked(texts, policy, _DIRECTIONS[direction])
        return [None if each.verdict.action == types_pb2.ACTION_BLOCK else each.text for each in checked]

    async def find(self, texts: Sequence[str], policy: str) -> list[frozenset[str]]:
        """The types of entities that a policy finds in each text, as in answers; waits while the platform is away.

        texts: 1 to conversation.MAX_CHECKED_TEXTS, of conversation.MAX_CHARACTERS together. Raises FactoryError.
        """
        checked = await self._checked(texts, policy, types_pb2.DIRECTION_OUTPUT)
        return [frozenset(finding.entity_type for finding in each.verdict.findings) for each in checked]

    async def embed(self, texts: Sequence[str], model: str) -> list[Sequence[float]]:
        """See drift.embeddings.Embedder; waits while the platform is away."""
        request = gateway_pb2.EmbedRequest(model=model, texts=texts)
        found = await self._patiently(
            lambda: channels.unary(self._stub.Embed, request, timeout_seconds=_EMBED_TIMEOUT_SECONDS)
        )
        return [each.values for each in found.embeddings]

    async def chat(self, request: gateway_pb2.ChatRequest) -> AsyncGenerator[gateway_pb2.ChatResponse, None]:
        """The parts of an answer. Raises FactoryError; it is not repeated by itself."""
        call = channels.stream(self._stub.Chat, request, timeout_seconds=_CHAT_TIMEOUT_SECONDS)
        async with aclosing(call) as parts:
            async for part in parts:
                yield part

    async def recorded(self, request_ids: Sequence[str]) -> dict[str, monitor_pb2.Interaction]:
        """The records of requests by their ids, without text; those that are not stored yet are missing.

        request_ids: 1 to 500. Waits while the platform is away. Raises FactoryError.
        """
        request = gateway_pb2.QueryInteractionsRequest(
            filter=monitor_pb2.InteractionFilter(request_ids=request_ids),
            page_size=len(request_ids),
            without_text=True,
        )
        page = await self._patiently(
            lambda: channels.unary(self._stub.QueryInteractions, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        )
        return {item.request_id: item for item in page.interactions}

    async def load_adapter(self, request: gateway_pb2.LoadAdapterRequest) -> int:
        """Replicas of the model server that have the adapter now; waits until all have. Raises FactoryError."""
        done = await self._patiently(
            lambda: channels.unary(self._stub.LoadAdapter, request, timeout_seconds=_ADAPTER_TIMEOUT_SECONDS)
        )
        return done.replicas

    async def unload_adapter(self, name: str) -> int:
        """Replicas of the model server, none of which has the adapter now. Raises FactoryError."""
        request = gateway_pb2.UnloadAdapterRequest(name=name)
        done = await self._patiently(
            lambda: channels.unary(self._stub.UnloadAdapter, request, timeout_seconds=_ADAPTER_TIMEOUT_SECONDS)
        )
        return done.replicas

    async def indexes(self, knowledge_base: str) -> list[gateway_pb2.Index]:
        """Its index versions, newest first; waits while the platform is away. Raises FactoryError."""
        request = gateway_pb2.ListIndexesRequest(knowledge_base=knowledge_base)
        found = await self._patiently(
            lambda: channels.unary(self._stub.ListIndexes, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        )
        return list(found.indexes)

    async def build_index(self, knowledge_base: str, key: str) -> AsyncGenerator[gateway_pb2.BuildIndexResponse, None]:
        """The progress of a build; the same key gives the same version. Raises FactoryError; it is not repeated."""
        request = gateway_pb2.BuildIndexRequest(knowledge_base=knowledge_base, idempotency_key=key)
        call = channels.stream(self._stub.BuildIndex, request, timeout_seconds=_BUILD_TIMEOUT_SECONDS)
        async with aclosing(call) as pieces:
            async for piece in pieces:
                yield piece

    async def swap_index(self, knowledge_base: str, version: str) -> gateway_pb2.SwapIndexResponse:
        """Makes a version the active one; waits while the platform is away. Raises FactoryError."""
        request = gateway_pb2.SwapIndexRequest(knowledge_base=knowledge_base, index_version=version)
        return await self._patiently(
            lambda: channels.unary(self._stub.SwapIndex, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        )

    async def drop_index(self, knowledge_base: str, version: str) -> None:
        """Drops a version that does not serve; an unknown one is no error. Waits as they do. Raises FactoryError."""
        request = gateway_pb2.DropIndexRequest(knowledge_base=knowledge_base, index_version=version)
        try:
            await self._patiently(
                lambda: channels.unary(self._stub.DropIndex, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
            )
        except NotFound as error:
            if error.field != "index_version":
                raise

    async def record_drift(self, report: monitor_pb2.DriftReport) -> monitor_pb2.DriftReport:
        """Stores the report of a drift check; returns it with its verdict. Waits while the platform is away.

        Raises FactoryError.
        """
        request = gateway_pb2.RecordDriftReportRequest(report=report)
        stored = await self._patiently(
            lambda: channels.unary(self._stub.RecordDriftReport, request, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
        )
        return stored.report

    def patience(self) -> Patience:
        """For one piece of work."""
        return Patience(self._patience_seconds)

    async def _checked(
        self, texts: Sequence[str], policy: str, direction: types_pb2.Direction.ValueType
    ) -> Sequence[gateway_pb2.CheckedText]:
        request = gateway_pb2.CheckTextsRequest(texts=texts, policy=policy, direction=direction)
        found = await self._patiently(
            lambda: channels.unary(self._stub.CheckTexts, request, timeout_seconds=_CHECK_TIMEOUT_SECONDS)
        )
        return found.texts

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        patience = self.patience()
        while True:
            try:
                return await call()
            except FactoryError as error:
                await patience.wait(error)


class Patience:
    """Waits between attempts, until there was no success for too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._since = time.monotonic()

    def succeeded(self) -> None:
        """The platform has answered."""
        self._failures, self._since = 0, time.monotonic()

    def passes(self, error: FactoryError) -> bool:
        """Whether waiting may help."""
        return isinstance(error, PASSING)

    async def wait(self, error: FactoryError) -> None:
        """Waits after a failure. Raises the error again when it does not pass, or has not for too long."""
        self._failures += 1
        pause = max(error.retry_after_seconds or 0.0, _BACKOFF.seconds(self._failures))
        if not self.passes(error) or time.monotonic() + pause - self._since > self._seconds:
            raise error
        await asyncio.sleep(pause)
