"""Loads and unloads adapters on every replica of the model server, since any of them may serve a request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import channels, settings
from genaifactory_common.errors import FactoryError, Unavailable, Unimplemented
from genaifactory_gateway.admission import Entry
from genaifactory_gateway.twins import twin

_SCHEME = "dns:///"
_RETRY_AFTER_SECONDS = 5.0


class Adapters:
    """The model server's RPCs on adapters, for requests admitted with the permission 'operate'."""

    def __init__(
        self,
        modelserver: str,
        tls: settings.Tls | None,
        *,
        timeout_seconds: float,
        resolve: Callable[[str, int], Awaitable[list[str]]] | None = None,
    ) -> None:
        """modelserver: dns:///NAME:PORT, a name with the address of each replica, or unix:PATH; empty: none.

        timeout_seconds: for one replica to download, verify and load an adapter. resolve: returns the IP addresses of
        a name and raises OSError.
        """
        self._resolve = resolve or _resolved
        self._modelserver = modelserver
        self._tls = tls
        self._timeout_seconds = timeout_seconds

    async def load(self, entry: Entry, request: gateway_pb2.LoadAdapterRequest) -> gateway_pb2.LoadAdapterResponse:
        """Raises FactoryError."""
        await entry.reserve()
        wanted, timeout_seconds = twin(request, modelserver_pb2.LoadAdapterRequest), self._timeout_seconds
        count = await self._everywhere(
            lambda stub: channels.unary(stub.LoadAdapter, wanted, timeout_seconds=timeout_seconds)
        )
        return gateway_pb2.LoadAdapterResponse(replicas=count)

    async def unload(
        self, entry: Entry, request: gateway_pb2.UnloadAdapterRequest
    ) -> gateway_pb2.UnloadAdapterResponse:
        """Raises FactoryError."""
        await entry.reserve()
        wanted, timeout_seconds = twin(request, modelserver_pb2.UnloadAdapterRequest), self._timeout_seconds
        count = await self._everywhere(
            lambda stub: channels.unary(stub.UnloadAdapter, wanted, timeout_seconds=timeout_seconds)
        )
        return gateway_pb2.UnloadAdapterResponse(replicas=count)

    async def _everywhere(self, call: Callable[[modelserver_pb2_grpc.ModelServiceAsyncStub], Awaitable[object]]) -> int:
        """Calls each replica; returns their number. Raises FactoryError when one fails."""
        name, addresses = await self._replicas()

        async def one(address: str) -> FactoryError | None:
            async with channels.connect(address, self._tls, name=name) as channel:
                try:
                    await call(modelserver_pb2_grpc.ModelServiceStub(channel))
                except FactoryError as error:
                    return error
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(address)) for address in addresses]
        failures = [error for task in tasks if (error := task.result()) is not None]
        if len(failures) == len(addresses):
            raise failures[0]
        if failures:
            raise Unavailable(
                f"Done on {len(addresses) - len(failures)} of {len(addresses)} replicas of the model server; another "
                f"failed: {failures[0].message}",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        return len(addresses)

    async def _replicas(self) -> tuple[str, list[str]]:
        """The name in the replicas' certificates, and the address of each. Raises Unavailable, Unimplemented."""
        if not self._modelserver:
            raise Unimplemented("This installation has no model server.")
        if not self._modelserver.startswith(_SCHEME):
            return "", [self._modelserver]
        host, _, port = self._modelserver.removeprefix(_SCHEME).rpartition(":")
        try:
            addresses = await self._resolve(host, int(port))
        except OSError:
            addresses = []
        if not addresses:
            raise Unavailable("The model server cannot be found; try again.", retry_after_seconds=_RETRY_AFTER_SECONDS)
        return host, [f"ipv6:[{ip}]:{port}" if ":" in ip else f"ipv4:{ip}:{port}" for ip in addresses]


async def _resolved(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))
