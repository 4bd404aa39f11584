"""Bounds what the holders of keys send over gRPC, each tenant to its share, before a message of it is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from genaifactory_common.channels import MAX_MESSAGE_BYTES
from genaifactory_common.errors import DeadlineExceeded, Overloaded
from genaifactory_common.interceptors import Metadata
from genaifactory_gateway.admission import Admission
from genaifactory_gateway.servicer import authorization
from genaifactory_gateway.shares import Shares, Waiting

_RETRY_AFTER_SECONDS = 1.0


class GrpcGate:
    """Authenticates calls by their API keys, and gives them their places. The owner of a call is its tenant."""

    def __init__(self, admission: Admission, *, max_calls: int, read_seconds: float) -> None:
        """max_calls: at once, of all tenants. read_seconds: for the one message of a call, with the wait for a place.

        Messages that are read at once are as many as fit into the memory for bodies: gRPC shows none before it is
        complete, so that each counts as the longest one.
        """
        self._admission = admission
        self._calls = Shares(max_calls)
        self._reading = Waiting(Shares(max(1, admission.bodies.whole // MAX_MESSAGE_BYTES)))
        self._read_seconds = read_seconds

    def authenticate(self, metadata: Metadata) -> str:
        """The tenant of the key in a call's metadata. Raises Unauthenticated, InvalidArgument."""
        return self._admission.authenticate(authorization(metadata)).tenant.name

    @contextlib.contextmanager
    def called(self, owner: str) -> Iterator[None]:
        """One of the tenant's calls. Raises Overloaded."""
        if not self._calls.take(owner):
            raise Overloaded(
                "The gateway has as many calls as it can, or as one tenant may have at once; try again.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        try:
            yield
        finally:
            self._calls.give_back(owner)

    @contextlib.asynccontextmanager
    async def reading(self, owner: str) -> AsyncIterator[None]:
        """Reads one message of the tenant. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self._read_seconds), self._reading.place(owner):
                yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"The call's message was not complete within {self._read_seconds:g} seconds; send it at once."
            ) from None
