"""SIGTERM under load: what was accepted is finished, what is new goes to the other replica."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import signal
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2, modelserver_pb2_grpc
from genaifactory_common import channels, testing
from genaifactory_common.errors import FactoryError, Unavailable
from genaifactory_common.testing import certificates
from tests.full import FULL
from tests.vllm import processes
from tests.vllm.processes import OPERATOR, Client, ModelServer, connected, prompt

HOSTS = ("127.0.0.1", "127.0.0.2")
NAME = "modelserver.test"


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
    """Two model servers with one port on two addresses, as two pods behind one name."""

    def __init__(self, folder: Path, llama: Path) -> None:
        self.tls = certificates.write(folder / "tls", certificates.new_authority(), names=(NAME,))
        self.port = processes.free_port()
        self._folder = folder
        self._llama = llama

    @contextmanager
    def started(self, host: str) -> Iterator[ModelServer]:
        health = f"127.0.0.1:{processes.free_port()}"
        environment = {
            "GENAIFACTORY_SERVER__TLS__CERTIFICATE": str(self.tls.certificate),
            "GENAIFACTORY_SERVER__TLS__PRIVATE_KEY": str(self.tls.private_key),
            "GENAIFACTORY_SERVER__TLS__CA": str(self.tls.ca),
            "GENAIFACTORY_SERVER__CALLERS": json.dumps([certificates.GATEWAY]),
            "GENAIFACTORY_SERVER__HEALTH_ADDRESS": health,
            "GENAIFACTORY_SERVER__DRAIN_SECONDS": "20",
        }
        with processes.started(
            self._folder / host, [processes.entry(self._llama)], address=f"{host}:{self.port}", **environment
        ) as server:
            server.address = health  # where the kubelet would look
            yield server


async def test_a_rolling_restart_of_two_replicas_under_load_fails_no_request(llama: Path, tmp_path: Path) -> None:
    replicas = Replicas(tmp_path, llama)
    failures: list[FactoryError] = []
    finished = {"count": 0}
    stop = asyncio.Event()
    calm = asyncio.Event()  # while a replica starts: load that takes the processor from it would show nothing more
    testing.act_as(OPERATOR)

    async def ask(client: Client, number: int) -> None:
        asked = 0
        while not stop.is_set():
            asked += 1
            request = prompt(f"{number} leave {asked}", max_tokens=40, sampling={"temperature": 1.0, "seed": number})
            try:
                answer = await client.ask(request, seconds=120)
                assert answer.messages[-1].HasField("usage")  # whole, never cut without a word
                finished["count"] += 1
            except FactoryError as error:
                failures.append(error)
                return
            if calm.is_set():
                await asyncio.sleep(2)

    with ExitStack() as stack:
        servers = {host: stack.enter_context(replicas.started(host)) for host in HOSTS}
        for server in servers.values():
            server.wait_until_ready()
        async with (
            name_server() as names,
            channels.connect(f"dns://127.0.0.1:{names}/{NAME}:{replicas.port}", replicas.tls) as channel,
            asyncio.TaskGroup() as group,
        ):
            client = Client(modelserver_pb2_grpc.ModelServiceStub(channel))
            for number in range(8):
                group.create_task(ask(client, number))
            for host in HOSTS:
                await more(finished, 30, failures)
                served = {each: server.metric("genaifactory_modelserver_time_to_first_token_seconds_count")
                          for each, server in servers.items()}  # fmt: skip
                assert all(served.values()), f"one replica gets nothing: {served}"
                servers[host].process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(servers[host].process.wait, 40) == 0
                await more(finished, 10, failures)  # the other one serves alone
                if host == HOSTS[-1] and not FULL:
                    break  # the first has shown that one that comes back is found
                calm.set()
                servers[host] = stack.enter_context(replicas.started(host))
                await asyncio.to_thread(servers[host].wait_until_ready)
                calm.clear()
            await more(finished, 30, failures)
            stop.set()
    assert failures == []


async def more(finished: dict[str, int], count: int, failures: list[FactoryError]) -> None:
    """Until so many more requests are finished; at once when one has failed."""
    wanted = finished["count"] + count
    async with asyncio.timeout(100):
        while finished["count"] < wanted:  # other tasks count
            assert failures == []
            await asyncio.sleep(0.05)


async def test_sigterm_finishes_the_streams_that_fit_into_the_drain_and_ends_the_others_with_a_word_to_try_again(
    llama: Path, tmp_path: Path
) -> None:
    def streams(
        client: Client, count: int, tokens: int
    ) -> list[AsyncGenerator[modelserver_pb2.GenerateResponse, None]]:
        sampling = [{"temperature": 1.5, "seed": seed} for seed in range(count)]
        return [client.stream(prompt("leave", max_tokens=tokens, sampling=each), seconds=200) for each in sampling]

    engine = processes.entry(llama, args={"max_model_len": 2048})
    with processes.started(tmp_path, [engine], GENAIFACTORY_SERVER__DRAIN_SECONDS="5") as server:
        server.wait_until_ready()
        async with connected(server) as client:
            long, short = streams(client, 24, 2000), streams(client, 8, 20)
            await asyncio.gather(*map(anext, (*long, *short)))
            server.process.send_signal(signal.SIGTERM)
            outcomes = await asyncio.gather(*map(_drained, (*short, *long)), return_exceptions=True)
        assert await asyncio.to_thread(server.process.wait, 20) == 0
    finished, ended = outcomes[: len(short)], outcomes[len(short) :]
    assert all(isinstance(each, int) and each for each in finished), finished
    failed = [each for each in ended if isinstance(each, BaseException)]
    assert failed, "the test's streams are too short to outlast the drain"
    for error in failed:
        assert isinstance(error, Unavailable)
        assert "another replica can answer" in error.message
        assert error.retry_after_seconds is not None
    processes.wait_until_gone(server.engine_processes(), seconds=10)


async def _drained(stream: AsyncIterator[modelserver_pb2.GenerateResponse]) -> int:
    """Reads to the end; how many tokens it had in all. Raises FactoryError."""
    tokens = 0
    async for message in stream:
        tokens = message.usage.completion_tokens or tokens
    return tokens


@pytest.fixture(autouse=True)
def _somebody() -> None:
    testing.act_as(OPERATOR)
