"""InvalidArgument for requests whose bytes are no message, where gRPC itself returns UNKNOWN with a class's name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from genaifactory_common import errors
from genaifactory_common.errors import InvalidArgument

_MALFORMED = object()


def tolerant(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that does not raise for bytes that are no message; `checked` does."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return _MALFORMED

    return read


def checked(request: Any, method: str) -> Any:
    """The request, or a stream that checks each message. Raises InvalidArgument for bytes that are no message."""
    if request is _MALFORMED:
        raise InvalidArgument(
            f"The request of {method.lstrip('/')} is no protobuf message of its type; "
            "write it with code generated from the platform's .proto files."
        )
    return _checked_each(request, method) if isinstance(request, AsyncIterator) else request


async def _checked_each(requests: AsyncIterator[Any], method: str) -> AsyncIterator[Any]:
    async for request in requests:
        yield checked(request, method)


def refusing(handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
    """A library's handler (health) that returns InvalidArgument for bytes that are no message."""
    behaviour: Callable[..., Awaitable[Any]] = handler.unary_stream or handler.unary_unary  # type: ignore[assignment]

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            checked(request, method)
        except InvalidArgument as error:
            await context.abort_with_status(errors.to_status(error))
        return await behaviour(request, context)

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(call, tolerant(handler.request_deserializer), handler.response_serializer)  # type: ignore[arg-type]
