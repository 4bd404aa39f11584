"""CPU per request of the gateway alone, over a scripted orchestrator, at 16 concurrent requests.

The gateway is a process of its own, so that its CPU can be measured; the orchestrator and the clients are others.
Run: python tests/bench/gateway.py [--requests 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import uvloop

from genaifactory_common import runtime, settings, specs, testing
from genaifactory_common.testing import orchestrator as script
from genaifactory_common.testing.feedback import FakeFeedbackStore

KEY = "sk-bench-0123456789"
CONNECTIONS = 16
DELTAS = 50
FACTORY = f"""
tenants:
  - name: bench
    limits: {{requests_per_minute: 10000000, tokens_per_minute: 1000000000000}}
    keys: [{{id: bench, sha256: {specs.hash_key(KEY)}, role: user}}]
roles: [{{name: user, permissions: [chat, models]}}]
models: [{{name: extractive, backend: {{type: modelserver, model: extractive}}}}]
routes: [{{name: chat, task: chat, models: [extractive]}}]
policies: [{{name: default}}]
"""


def main() -> None:
    """Prints a line for each kind of request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind")
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        uvloop.run(_serve_upstream(arguments.upstream))
        return
    with tempfile.TemporaryDirectory(prefix="gf-") as folder, _processes(Path(folder)) as (gateway, port):
        print(f"gateway alone, {CONNECTIONS} concurrent, {arguments.requests} requests of each kind")
        for name, path, body in (
            ("GET /healthz (uvicorn, routing, log)", "/healthz", None),
            ("GET /v1/models (with admission)", "/v1/models", None),
            ("chat, whole answer of 1 piece", "/v1/chat/completions", _chat("one", stream=False)),
            ("chat, streamed, 1 piece", "/v1/chat/completions", _chat("one", stream=True)),
            (f"chat, streamed, {DELTAS} pieces", "/v1/chat/completions", _chat("many", stream=True)),
        ):
            uvloop.run(_load(port, path, body, arguments.requests // 10))  # warm
            before, started = _cpu_seconds(gateway), time.perf_counter()
            uvloop.run(_load(port, path, body, arguments.requests))
            seconds = time.perf_counter() - started
            cpu = (_cpu_seconds(gateway) - before) / arguments.requests * 1e6
            print(f"{name:40} {cpu:8.0f} us CPU/request {arguments.requests / seconds:8.0f} requests/s")


def _chat(question: str, *, stream: bool) -> bytes:
    filler = {"role": "system", "content": "Trả lời ngắn gọn. " * 40}  # about a kilobyte
    return orjson.dumps(
        {"model": "chat", "stream": stream, "messages": [filler, {"role": "user", "content": question}]}
    )


async def _serve_upstream(folder: str) -> None:
    orchestrator = script.FakeOrchestrator()
    orchestrator.script = lambda request: [
        script.route(),
        *[script.delta("Hà Nội là thủ đô. ")] * (DELTAS if request.messages[-1].content == "many" else 1),
        script.done(),
    ]
    store = FakeFeedbackStore()
    async with (
        runtime.running(orchestrator.app(testing.VERIFIER), settings.Server(address=f"unix:{folder}/orchestrator")),
        runtime.running(store.app(testing.VERIFIER), settings.Server(address=f"unix:{folder}/monitor")),
    ):
        await asyncio.Event().wait()


@contextmanager
def _processes(folder: Path) -> Iterator[tuple[int, int]]:
    """The gateway's process id and HTTP port."""
    (folder / "factory.yaml").write_text(FACTORY)
    environment = {
        **os.environ,
        "GENAIFACTORY_FACTORY_FILE": str(folder / "factory.yaml"),
        "GENAIFACTORY_CONTEXT_PRIVATE_KEY": base64.b64encode(testing.SIGNER.private_key).decode(),
        "GENAIFACTORY_HTTP__ADDRESS": "127.0.0.1:0",
        "GENAIFACTORY_SERVER__ADDRESS": f"unix:{folder}/gateway",
        "GENAIFACTORY_UPSTREAMS__ORCHESTRATOR": f"unix:{folder}/orchestrator",
        "GENAIFACTORY_UPSTREAMS__MONITOR": f"unix:{folder}/monitor",
    }
    log = folder / "log"
    with log.open("wb") as output:
        upstream = subprocess.Popen([sys.executable, __file__, "--upstream", str(folder)], stderr=output)
        _until(lambda: (folder / "monitor").exists(), log)
        gateway = subprocess.Popen([sys.executable, "-m", "genaifactory_gateway"], env=environment, stderr=output)
    try:
        yield gateway.pid, _port(log)
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(30)
        upstream.kill()
        upstream.wait(30)


def _port(log: Path) -> int:
    def found() -> int:
        lines = [line for line in log.read_text().splitlines() if "answers HTTP on" in line]
        return int(orjson.loads(lines[0])["message"].rpartition(":")[2]) if lines else 0

    return _until(found, log)


def _until(found: Callable[[], int], log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(port: int, path: str, body: bytes | None, requests: int) -> None:
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    if body is not None:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    request = head.encode() + b"\r\n" + (body or b"")
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer + await reader.read(1000))
            if b"transfer-encoding" in answer:
                await reader.readuntil(b"0\r\n\r\n")
            else:
                length = next(line for line in answer.split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(CONNECTIONS):
            clients.create_task(client())


if __name__ == "__main__":
    main()
