"""CPU per request and requests/s of the whole path, by service.

Each service is a process of its own on a unix socket, so that the CPU of each can be measured. Run: make bench
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import uvloop

from genaifactory_common import channels, specs
from genaifactory_common.tokens import Signer
from genaifactory_local import finding, testing
from genaifactory_pipelines.sources import sending

SERVICES = ("monitor", "safety", "modelserver", "retriever", "orchestrator", "gateway")
UPSTREAMS = {
    "orchestrator": ("safety", "retriever", "modelserver", "monitor"),
    "gateway": ("orchestrator", "monitor", "retriever"),
}
KEY = "gf-bench-key-0123456789abcdef"
QUESTIONS = (
    "How many days of annual leave do I have?",
    "Mỗi năm tôi có bao nhiêu ngày nghỉ phép?",
    "What is the daily allowance for a trip abroad?",
    "Pin của cảm biến Lúa 3 dùng được bao lâu?",
)


@dataclass(frozen=True)
class Scenario:
    """One kind of request."""

    name: str
    route: str
    question: Callable[[int], str]
    """The question of the n-th request."""
    temperature: float | None = None
    """0 makes an answer repeatable, so that it is cached."""


SCENARIOS = (
    Scenario("rag, new questions", "rag", lambda n: f"{QUESTIONS[n % len(QUESTIONS)]} ({n})"),
    Scenario("rag, from the cache", "rag", lambda n: QUESTIONS[n % len(QUESTIONS)], temperature=0),
    Scenario("chat, new questions", "chat", lambda n: f"{QUESTIONS[n % len(QUESTIONS)]} ({n})"),
)


@dataclass(frozen=True)
class Cluster:
    """Six running processes."""

    pids: dict[str, int]
    http_port: int
    metrics_ports: dict[str, int]
    factory: Path
    """The factory.yaml that all of them follow; each writes NAME.log beside it."""


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Runs the six services, with the sample handbook ingested."""
    signer = Signer.generate()
    factory = folder / "factory.yaml"
    text = testing.DEFAULT_FACTORY.read_text(encoding="utf-8")
    key = f"    keys:\n      - {{id: bench, sha256: {specs.hash_key(KEY)}, role: admin}}\n"
    text = text.replace("    keys: []\n", key).replace("requests_per_minute: 6000", "requests_per_minute: 100000000")
    factory.write_text(text.replace("tokens_per_minute: 10000000", "tokens_per_minute: 100000000000"))
    sockets = {name: f"unix:{folder / name}.sock" for name in SERVICES}
    http_port, grpc_port = _free_port(), _free_port()
    metrics_ports = {name: _free_port() for name in SERVICES}
    common = {
        "GENAIFACTORY_FACTORY_FILE": str(factory),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(signer.public_key).decode(),
        "GENAIFACTORY_TELEMETRY__LOG_LEVEL": "WARNING",
    }
    own: dict[str, dict[str, str]] = {
        name: {
            "GENAIFACTORY_SERVER__ADDRESS": sockets[name],
            "GENAIFACTORY_SERVER__METRICS_PORT": str(metrics_ports[name]),
            "GENAIFACTORY_DATA_DIR": str(folder / "data" / name),
            **{f"GENAIFACTORY_UPSTREAMS__{n.upper()}": sockets[n] for n in UPSTREAMS.get(name, ())},
        }
        for name in SERVICES
    }
    own["gateway"] |= {
        "GENAIFACTORY_SERVER__ADDRESS": f"127.0.0.1:{grpc_port}",
        "GENAIFACTORY_HTTP__ADDRESS": f"127.0.0.1:{http_port}",
        "GENAIFACTORY_CONTEXT_PRIVATE_KEY": base64.b64encode(signer.private_key).decode(),
    }
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_process(name, folder, common | own[name])) for name in SERVICES}
        await _until_ready(http_port, folder, processes.values())
        found = finding.find([testing.SAMPLE])
        async with channels.connect(f"127.0.0.1:{grpc_port}", api_key=KEY) as channel, asyncio.timeout(60):
            await channel.channel_ready()
            await sending.ingest(channel, "documents", found.documents)
        pids = {name: process.pid for name, process in processes.items()}
        yield Cluster(pids, http_port, metrics_ports, factory)


async def measure(running: Cluster, scenario: Scenario, *, clients: int, seconds: float, start: int) -> int:
    """Runs one scenario and prints its figures; returns how many requests it made.

    start: number of the first request, so that new questions stay new.
    """
    numbers = iter(range(start, 10**9))
    latencies: list[float] = []
    first_texts: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
        with contextlib.closing(writer):
            while time.perf_counter() < end:
                began = time.perf_counter()
                first_texts.append(await _ask(reader, writer, scenario, next(numbers)) - began)
                latencies.append(time.perf_counter() - began)

    before = {name: _cpu_seconds(pid) for name, pid in running.pids.items()}
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    elapsed = time.perf_counter() - began
    await asyncio.sleep(1)  # monitor receives the last records a moment after the answers
    spent = {name: _cpu_seconds(pid) - before[name] for name, pid in running.pids.items()}
    count = len(latencies)
    cut = statistics.quantiles(latencies, n=100)
    print(
        f"\n{scenario.name}: {count} requests by {clients} clients, {count / elapsed:,.0f} requests/s; "
        f"latency p50 {cut[49] * 1e3:.1f} ms, p99 {cut[98] * 1e3:.1f} ms; "
        f"first text p50 {statistics.median(first_texts) * 1e3:.1f} ms"
    )
    for name in reversed(SERVICES):
        print(f"  {name:<14}{spent[name] / count * 1e6:>8,.0f} us CPU/request")
    print(f"  {'all six':<14}{sum(spent.values()) / count * 1e6:>8,.0f} us CPU/request")
    return count


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scenario: Scenario, number: int) -> float:
    """One streamed answer; returns the time of its first text. A minimal client leaves the CPU to the services."""
    message = {"role": "user", "content": scenario.question(number)}
    fields = {"model": scenario.route, "stream": True, "messages": [message], "temperature": scenario.temperature}
    body = json.dumps(fields).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer %s\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"{head.decode()}{(await reader.read(4096)).decode()}")
    await reader.readuntil(b'"content":"')
    first = time.perf_counter()
    await reader.readuntil(b"data: [DONE]\n\n")
    await reader.readuntil(b"0\r\n\r\n")
    return first


async def _until_ready(http_port: int, folder: Path, processes: Iterable[subprocess.Popen[bytes]]) -> None:
    def status() -> int:
        with urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=2) as response:
            return int(response.status)

    for _ in range(300):
        if any(process.poll() is not None for process in processes):
            break
        with contextlib.suppress(OSError):
            if await asyncio.to_thread(status) == 200:
                return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"the services are not ready:\n{await asyncio.to_thread(_logs, folder)}")


async def _until_answered(running: Cluster) -> None:
    """Waits for an answer: the services connect to each other a moment after all are ready."""
    async with asyncio.timeout(60):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
            with contextlib.closing(writer), contextlib.suppress(RuntimeError):
                await _ask(reader, writer, SCENARIOS[0], 0)
                return
            await asyncio.sleep(0.2)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(name: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", f"genaifactory_{name}"]
    with (
        open(folder / f"{name}.log", "wb") as log,
        subprocess.Popen(command, env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def _logs(folder: Path) -> str:
    return "".join(f"{log.name}: {log.read_text()[-500:]}\n" for log in sorted(folder.glob("*.log")))


async def main() -> None:
    """Measures every scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gf-bench-") as folder:
        async with cluster(Path(folder)) as running:
            asked = 1
            await _until_answered(running)
            for scenario in SCENARIOS:
                print(f"\n== {scenario.name}, warming up")
                asked += await measure(running, scenario, clients=arguments.clients, seconds=1, start=asked)
                print(f"\n== {scenario.name}, measured")
                asked += await measure(
                    running, scenario, clients=arguments.clients, seconds=arguments.seconds, start=asked
                )


if __name__ == "__main__":
    uvloop.run(main())
