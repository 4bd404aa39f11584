"""Two real model servers as two pods behind one name, and where their weights come from."""

from __future__ import annotations

import asyncio
import functools
import http.server
import ipaddress
import json
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr

from genaifactory.modelserver.v1 import modelserver_pb2_grpc
from genaifactory_common import channels, testing
from genaifactory_common.testing import certificates
from tests import ports
from tests.vllm import processes
from tests.vllm.processes import MAX_LOADED, OPERATOR, Client, ModelServer

if TYPE_CHECKING:
    from _typeshed import SupportsRead, SupportsWrite

HOSTS = ("127.0.0.1", "127.0.0.2")
NAME = "modelserver.test"
DRAIN_SECONDS = 5


class _Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, large files in slices with pauses, so that a download takes a while."""

    def copyfile(self, source: SupportsRead[AnyStr], outputfile: SupportsWrite[AnyStr]) -> None:
        while data := source.read(1 << 20):
            outputfile.write(data)
            time.sleep(0.15)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """Serves the folder over HTTP; yields its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Mirror, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for addresses with HOSTS, as a headless Service's name does."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # as asyncio's
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5  # the question: a name, its type and class
        question, kind = data[12:end], int.from_bytes(data[end - 4 : end - 2], "big")
        hosts = HOSTS if kind == 1 else ()  # type A; of others there is none
        records = [
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + ipaddress.IPv4Address(host).packed for host in hosts
        ]
        header = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(records), 0, 0)
        self._transport.sendto(header + question + b"".join(records), address)


@asynccontextmanager
async def name_server() -> AsyncIterator[int]:
    """Runs one; yields its port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


class Replicas:
    """Two model servers with one port on two addresses, each with a data folder that the next one there takes over."""

    def __init__(self, folder: Path, source: str, stack: ExitStack) -> None:
        """source: of the weights. stack: ends what is started."""
        self._tls = certificates.write(folder / "tls", certificates.new_authority(), names=(NAME,))
        self._port = ports.free_port()
        self._folder = folder
        self._stack = stack
        # As long a context as the model has: answers that outlast a drain.
        args = {"max_model_len": 2048}
        self._engines = [
            {"type": "extractive"},
            processes.entry(source, args=args, adapters={"max_loaded": MAX_LOADED}),
        ]
        self.servers = {host: self._started(host) for host in HOSTS}

    def start(self, host: str) -> ModelServer:
        """Starts the next one at this address."""
        self.servers[host] = self._started(host)
        return self.servers[host]

    def running(self) -> list[ModelServer]:
        """The servers that have not ended."""
        return [server for server in self.servers.values() if server.process.poll() is None]

    @asynccontextmanager
    async def at(self, host: str) -> AsyncIterator[Client]:
        """A client of the one at this address."""
        async with self._connected(f"ipv4:{host}:{self._port}", NAME) as client:
            yield client

    @asynccontextmanager
    async def behind_the_name(self) -> AsyncIterator[Client]:
        """A client of those that are ready, as the orchestrator is one."""
        async with name_server() as names, self._connected(f"dns://127.0.0.1:{names}/{NAME}:{self._port}") as client:
            yield client

    @asynccontextmanager
    async def _connected(self, address: str, name: str = "") -> AsyncIterator[Client]:
        testing.act_as(OPERATOR)
        async with channels.connect(address, self._tls, name=name) as channel:
            yield Client(modelserver_pb2_grpc.ModelServiceStub(channel))

    def _started(self, host: str) -> ModelServer:
        health = f"127.0.0.1:{ports.free_port()}"
        environment = {
            "GENAIFACTORY_SERVER__TLS__CERTIFICATE": str(self._tls.certificate),
            "GENAIFACTORY_SERVER__TLS__PRIVATE_KEY": str(self._tls.private_key),
            "GENAIFACTORY_SERVER__TLS__CA": str(self._tls.ca),
            "GENAIFACTORY_SERVER__CALLERS": json.dumps([certificates.GATEWAY]),
            "GENAIFACTORY_SERVER__HEALTH_ADDRESS": health,
            "GENAIFACTORY_SERVER__DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        server = self._stack.enter_context(
            processes.started(self._folder / host, self._engines, address=f"{host}:{self._port}", **environment)
        )
        server.address = health  # where the kubelet would look
        return server
