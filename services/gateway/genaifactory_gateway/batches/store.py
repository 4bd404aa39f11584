"""Calls to monitor's BatchService: for admitted requests, and for the worker in the gateway's own name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any

import grpc.aio

from genaifactory.monitor.v1 import batches_pb2, batches_pb2_grpc
from genaifactory_common import batch_lines, channels
from genaifactory_common.errors import FactoryError

SERVICE = batches_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name


def method(name: str) -> str:
    """The full name of a method of BatchService, for admission."""
    return f"/{SERVICE}/{name}"


class BatchStore:
    """The stub, with a deadline for each call. Every method raises FactoryError."""

    def __init__(self, monitor: grpc.aio.Channel, *, timeout_seconds: float, transfer_seconds: float) -> None:
        """timeout_seconds: for one call. transfer_seconds: for the content of a file."""
        self._stub = batches_pb2_grpc.BatchServiceStub(monitor)
        self._timeout_seconds = timeout_seconds
        self._transfer_seconds = transfer_seconds

    async def call(self, request: Any) -> Any:
        """The response to a request of a unary method, which its type names."""
        rpc = getattr(self._stub, type(request).__name__.removesuffix("Request"))
        return await channels.unary(rpc, request, timeout_seconds=self._timeout_seconds)

    async def append(self, file_id: str, content: AsyncIterable[bytes]) -> None:
        """Appends all of the content, of pieces of any size, to a file that was begun; holds one message of it."""
        offset, held = 0, bytearray()

        async def send(size: int) -> None:
            nonlocal offset
            data = bytes(held[:size])
            del held[:size]
            await self.call(batches_pb2.AppendFileRequest(file_id=file_id, offset=offset, data=data))
            offset += len(data)

        async for piece in content:
            held += piece
            while len(held) >= batch_lines.PIECE_BYTES:
                await send(batch_lines.PIECE_BYTES)
        if held:
            await send(len(held))

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content of a file in pieces, at the pace of the reader."""
        request = batches_pb2.ReadFileRequest(file_id=file_id)
        call = channels.stream(self._stub.ReadFile, request, timeout_seconds=self._transfer_seconds)
        async with aclosing(call) as pieces:
            async for piece in pieces:
                yield piece.data

    async def discard(self, file_id: str) -> None:
        """Erases a file that was not finished, if monitor can be reached: it is erased later otherwise."""
        try:
            await self.call(batches_pb2.DeleteFileRequest(file_id=file_id))
        except FactoryError:
            return
