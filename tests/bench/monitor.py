"""Interactions per second and the monitor's CPU for each, by batch and by reader.

The monitor is a process of its own, so that its CPU can be measured. Run: python tests/bench/monitor.py [--url postgresql://…]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory.types.v1 import types_pb2
from genaifactory_common import channels, testing

RECORDS = 10_000


def main() -> None:
    """Prints a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="a PostgreSQL database that may be filled; SQLite without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gf-") as folder, _monitor(Path(folder), arguments.url) as pid:
        uvloop.run(_measure(f"unix:{folder}/monitor.sock", pid))


async def _measure(address: str, pid: int) -> None:
    testing.act_as()
    async with channels.connect(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), timeout=60)
        stub: monitor_pb2_grpc.MonitorServiceAsyncStub = monitor_pb2_grpc.MonitorServiceStub(channel)
        for size, senders in ((500, 1), (50, 1), (50, 4), (1, 1), (1, 16)):
            records = RECORDS if size > 1 else RECORDS // 10

            async def send(size: int = size, senders: int = senders, records: int = records) -> int:
                batches = iter([_batch(f"{size}-{senders}-{start}", size) for start in range(0, records, size)])
                await asyncio.gather(*(_send(stub, batches) for _ in range(senders)))
                return records

            await _timed(f"record, {senders} sender(s), batches of {size}", pid, send)

        async def pages() -> int:
            for _ in range(20):
                page = await channels.unary(
                    stub.QueryInteractions, monitor_pb2.QueryInteractionsRequest(page_size=50), timeout_seconds=30
                )
            return 20 * len(page.interactions)

        async def usage() -> int:
            for _ in range(50):
                await channels.unary(stub.GetUsage, monitor_pb2.GetUsageRequest(), timeout_seconds=30)
            return 50

        async def export() -> int:
            request = monitor_pb2.ExportInteractionsRequest()
            pieces = channels.stream(stub.ExportInteractions, request, timeout_seconds=300)
            return sum([piece.count async for piece in pieces])

        await _timed("query, pages of 50", pid, pages)
        await _timed("usage of 30 days (calls)", pid, usage)
        await _timed("export", pid, export)


async def _send(
    stub: monitor_pb2_grpc.MonitorServiceAsyncStub, batches: Iterator[monitor_pb2.RecordInteractionsRequest]
) -> None:
    for batch in batches:
        await channels.unary(stub.RecordInteractions, batch, timeout_seconds=60)


async def _timed(name: str, pid: int, work: Callable[[], Awaitable[int]]) -> None:
    cpu, start = _cpu_seconds(pid), time.perf_counter()
    count = await work()
    seconds, used = time.perf_counter() - start, _cpu_seconds(pid) - cpu
    print(f"{name:40} {count / seconds:9.0f}/s {used / count * 1e6:9.0f} us CPU of the monitor each")


def _batch(prefix: str, size: int) -> monitor_pb2.RecordInteractionsRequest:
    return monitor_pb2.RecordInteractionsRequest(interactions=[_interaction(f"{prefix}-{i}") for i in range(size)])


def _interaction(request_id: str) -> monitor_pb2.Interaction:
    """The record of a rag answer: five passages, two verdicts, 1 KB of text."""
    message = monitor_pb2.Interaction(
        request_id=request_id,
        tenant=testing.CALLER.tenant,
        principal="alice",
        key_id="alice",
        task="rag",
        route="docs",
        model="extractive",
        attempts=[monitor_pb2.ModelAttempt(model="extractive", duration_us=2000)],
        passages=[monitor_pb2.PassageReference(passage_id=f"p{i}", document_id="d", score=0.3) for i in range(5)],
        verdicts=[types_pb2.Verdict(action=types_pb2.ACTION_ALLOW, policy="default", scanners=["pii"])] * 2,
        input=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Làm sao cài đặt Debian? " * 8)],
        output="Câu trả lời có trích dẫn [1]. " * 20,
        usage=types_pb2.TokenUsage(prompt_tokens=700, completion_tokens=120),
        cost_micros=120,
        currency="USD",
        time_to_first_token_us=1500,
        duration_us=9000,
        outcome=monitor_pb2.OUTCOME_ANSWERED,
    )
    message.start_time.GetCurrentTime()
    return message


@contextlib.contextmanager
def _monitor(folder: Path, url: str) -> Iterator[int]:
    environment = os.environ | {
        "GENAIFACTORY_SERVER__ADDRESS": f"unix:{folder}/monitor.sock",
        "GENAIFACTORY_DATA_DIR": str(folder / "data"),
        "GENAIFACTORY_CONTEXT_PUBLIC_KEY": base64.b64encode(testing.SIGNER.public_key).decode(),
        "GENAIFACTORY_TELEMETRY__LOG_LEVEL": "ERROR",
    }
    if url:
        environment["GENAIFACTORY_DATABASE_URL"] = url
    process = subprocess.Popen([sys.executable, "-m", "genaifactory_monitor"], env=environment)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
