"""CPU time of the orchestrator itself, per answer: a process of its own between scripted services.

python tests/bench/orchestrator_cpu.py [ANSWERS] [CONCURRENT]
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from genaifactory.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, settings
from genaifactory_common.runtime import running
from genaifactory_common.testing import SIGNER, VERIFIER, act_as
from genaifactory_common.testing.modelserver import FakeModelServer
from genaifactory_common.testing.monitor import FakeMonitor
from genaifactory_common.testing.retriever import FakeRetriever, passage
from genaifactory_common.testing.safety import FakeSafety

FACTORY = """
tenants: [{name: acme}]
roles: [{name: developer, permissions: [chat]}]
models: [{name: small, backend: {type: modelserver, model: small}}]
routes:
  - {name: rag, task: rag, models: [small], prompt: rag, knowledge_base: docs, cache: {enabled: false}}
  - {name: cached, task: rag, models: [small], prompt: rag, knowledge_base: docs}
prompts: [{name: rag, version: 1, system: "Answer from:\\n{{ passages }}"}]
knowledge_bases: [{name: docs}]
policies: [{name: default, rules: [{entities: [PII]}]}]
"""
PASSAGES = [passage("A sentence of a document about leave. " * 20, number=n) for n in range(1, 6)]


async def main(answers: int, concurrent: int) -> None:
    """Prints one line for each case."""
    with tempfile.TemporaryDirectory(prefix="gf-") as name:
        folder = Path(name)
        (folder / "factory.yaml").write_text(FACTORY)
        modelserver = FakeModelServer()
        async with AsyncExitStack() as stack:
            for fake in (FakeSafety(), FakeRetriever(PASSAGES), modelserver, FakeMonitor()):
                app = fake.app(VERIFIER)
                listening = settings.Server(address=f"unix:{folder}/{app.name}.sock", drain_seconds=0.1)
                await stack.enter_async_context(running(app, listening))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "genaifactory_orchestrator", env=environment(folder)
            )
            channel = await stack.enter_async_context(channels.connect(f"unix:{folder}/orchestrator.sock"))
            await channel.channel_ready()
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            act_as()
            print(f"{answers} answers, {concurrent} at once, 5 passages; CPU of the orchestrator alone")
            cases = [
                ("rag, whole in 1 piece", "rag", ["You have 14 days [1]. " * 20]),
                ("rag, 40 pieces at once", "rag", ["Fourteen days [1]. "] * 40),
                ("rag, from the cache", "cached", ["You have 14 days [1]. " * 20]),
            ]
            for title, route, script in cases:
                modelserver.script = script
                await rounds(stub, route, 100, concurrent, title)  # warms up, fills the cache
                before, started = cpu_seconds(process.pid), time.perf_counter()
                latencies = await rounds(stub, route, answers, concurrent, title)
                cpu, wall = cpu_seconds(process.pid) - before, time.perf_counter() - started
                print(
                    f"{title:24} {cpu / answers * 1e3:6.2f} ms CPU/answer  {answers / wall:6.0f} answers/s "
                    f"(all processes on this machine)  median {statistics.median(latencies) * 1e3:.1f} ms"
                )
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def rounds(
    stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub, route: str, answers: int, concurrent: int, title: str
) -> list[float]:
    """The latency of each answer, in seconds."""
    latencies: list[float] = []
    left = iter(range(answers))

    async def client() -> None:
        for number in left:
            question = "How many days of leave do I get?" if route == "cached" else f"How many days of leave, {number}?"
            request = orchestrator_pb2.AnswerRequest(
                request_id=f"{title[:3]}-{time.time_ns()}",
                route=route,
                messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=question)],
            )
            started = time.perf_counter()
            async for _ in channels.stream(stub.Answer, request, timeout_seconds=60):
                pass
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(concurrent)))
    return latencies


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(folder: Path) -> dict[str, str]:
    """Of the orchestrator's process."""
    return {
        "PATH": os.environ["PATH"],
        "GENAIFACTORY_TELEMETRY__LOG_LEVEL": "ERROR",
        "GENAIFACTORY_SERVER__ADDRESS": f"unix:{folder}/orchestrator.sock",
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(SIGNER.public_key).decode(),
        "GENAIFACTORY_FACTORY_FILE": str(folder / "factory.yaml"),
        "GENAIFACTORY_DATA_DIR": str(folder / "data"),
        **{
            f"GENAIFACTORY_UPSTREAMS__{name.upper()}": f"unix:{folder}/{name}.sock"
            for name in ("safety", "retriever", "modelserver", "monitor")
        },
    }


if __name__ == "__main__":
    uvloop.run(main(*(int(argument) for argument in (sys.argv[1:] + ["1000", "16"][len(sys.argv) - 1 :]))))
