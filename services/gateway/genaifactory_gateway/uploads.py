"""Streams uploaded documents to the retriever, without buffering them, within time bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.retriever.v1 import retriever_pb2, retriever_pb2_grpc
from genaifactory_common.channels import Duplex
from genaifactory_common.errors import DeadlineExceeded, FactoryError, InvalidArgument, Reason
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.transfers import Transfers
from genaifactory_gateway.twins import twin

# How long messages are still read after a failure: a client that is cut off while it sends loses the error.
_DRAIN_SECONDS = 0.5


class Uploads:
    """Uploads, for requests admitted with the permission 'ingest'."""

    def __init__(self, retriever: grpc.aio.Channel, transfers: Transfers) -> None:
        self._retriever = retriever_pb2_grpc.RetrieverServiceStub(retriever)
        self._transfers = transfers

    async def opened(self, entry: Entry, requests: AsyncIterator[gateway_pb2.IngestRequest]) -> gateway_pb2.IngestOpen:
        """The first message of an upload, which takes memory before it is complete. Raises InvalidArgument,
        DeadlineExceeded when it does not arrive, Overloaded when as many uploads run as may."""
        try:
            with self._transfers.one(entry.holder.tenant.name):
                async with asyncio.timeout(self._transfers.settings.idle_seconds):
                    request = await anext(requests, None)
        except TimeoutError:
            raise _idle(self._transfers.settings.idle_seconds) from None
        if request is None or request.WhichOneof("part") != "open":
            raise InvalidArgument("The first message must be `open`, which names the knowledge base.", field="open")
        return request.open

    async def ingest(
        self,
        entry: Entry,
        opened: gateway_pb2.IngestOpen,
        requests: AsyncIterator[gateway_pb2.IngestRequest],
        *,
        accepted: Callable[[], Awaitable[None]],
    ) -> AsyncGenerator[gateway_pb2.IngestResponse, None]:
        """Reserves, forwards the documents, and yields their outcomes.

        requests: the messages after `opened`; each is read when the retriever has received the one before. accepted:
        awaited when the retriever has accepted the call. Raises FactoryError.
        """
        base = entry.knowledge_base(opened.knowledge_base).name
        with self._transfers.one(entry.holder.tenant.name):
            await entry.reserve()
            timeout_seconds = self._transfers.settings.timeout_seconds
            async with Duplex(self._retriever.Ingest, timeout_seconds=timeout_seconds) as call:
                first = twin(opened, retriever_pb2.IngestOpen)
                first.knowledge_base = base
                await call.send(retriever_pb2.IngestRequest(open=first))
                await call.accepted()
                await accepted()
                forwarder = _Forwarder(call, self._transfers.settings.idle_seconds)
                task = asyncio.create_task(forwarder.run(requests), name="gateway-upload")
                try:
                    async for response in call:
                        forwarder.keep_alive()
                        yield twin(response, gateway_pb2.IngestResponse)
                except (FactoryError, asyncio.CancelledError) as error:
                    await forwarder.drain(task, error)
                    raise forwarder.error or error from None
                finally:
                    task.cancel()
                    await asyncio.wait((task,))


class _Forwarder:
    """Forwards a client's messages to the retriever."""

    def __init__(self, call: Duplex, idle_seconds: float) -> None:
        self.error: FactoryError | None = None
        """The error for which the gateway ended the call."""
        self._call = call
        self._idle_seconds = idle_seconds
        self._bound: asyncio.Timeout | None = None
        self._failed = False

    async def run(self, requests: AsyncIterator[gateway_pb2.IngestRequest]) -> None:
        """Forwards up to the last message. Messages after a failure, which the call reports, are dropped."""
        try:
            while (request := await self._next(requests)) is not None:
                await self._send(request)
            if not self._failed:
                await self._sent_all()
        except TimeoutError:
            self._end(_idle(self._idle_seconds))
        except FactoryError as error:  # for an invalid message
            self._end(error)

    def keep_alive(self) -> None:
        """Restarts the idle timeout after a response of the retriever, for which the client may have waited."""
        if self._bound is not None:
            self._bound.reschedule(self._due())

    async def drain(self, task: asyncio.Task[None], error: BaseException) -> None:
        """Reads on for a moment after a failure, unless the client has left."""
        self._failed = True
        if isinstance(error, FactoryError):
            await asyncio.wait((task,), timeout=_DRAIN_SECONDS)

    async def _next(self, requests: AsyncIterator[gateway_pb2.IngestRequest]) -> gateway_pb2.IngestRequest | None:
        async with asyncio.timeout_at(self._due()) as bound:
            self._bound = bound
            try:
                return await anext(requests, None)
            finally:
                self._bound = None

    async def _send(self, request: gateway_pb2.IngestRequest) -> None:
        if self._failed:
            return
        try:
            await self._call.send(_inner(request))
        except FactoryError:
            self._failed = True

    async def _sent_all(self) -> None:
        try:
            await self._call.done_sending()
        except FactoryError:
            self._failed = True

    def _end(self, error: FactoryError) -> None:
        self.error = error
        self._call.close()

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + self._idle_seconds


def _idle(idle_seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"No data arrived for {idle_seconds:g} s; send the documents without such a pause.",
        reason=Reason.REQUEST_TIMEOUT,
    )


def _inner(request: gateway_pb2.IngestRequest) -> retriever_pb2.IngestRequest:
    if request.WhichOneof("part") == "data":
        return retriever_pb2.IngestRequest(data=request.data)  # saves a copy of the bytes
    return twin(request, retriever_pb2.IngestRequest)
