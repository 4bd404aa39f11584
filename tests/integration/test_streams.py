"""64 concurrent streams, a tenth of whose clients hang up: no error, flat memory, and no work left at the engine."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from genaifactory.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from genaifactory_common import channels
from genaifactory_local import testing
from genaifactory_local.testing import Platform, Process
from tests.full import FULL

# The platform is another process, which blocking here does not affect.
pytestmark = pytest.mark.allow_blocking

SECONDS = 60 if FULL else 30
STREAMS = 64
PIECE = "a piece of text that is long "
PIECES = 40
SCRIPT = {"rules": [{"pieces": [PIECE], "repeat": PIECES, "delay_seconds": 0.05}]}
MODEL = """
  - name: slow
    backend: {type: modelserver, model: slow}
"""
ROUTE = """
  - name: slow
    task: chat
    models: [slow]
    cache: {enabled: false}
"""
MEBIBYTE = 2**20


@dataclass
class Outcomes:
    """Requests of the clients, by outcome."""

    finished: int = 0
    hung_up: int = 0
    quoted: int = 0
    """Answers of the rag route that were complete."""
    failures: list[str] = field(default_factory=list)


def _factory(folder: Path, engines: list[dict[str, object]]) -> Path:
    text = testing.DEFAULT_FACTORY.read_text(encoding="utf-8")
    text = text.replace("\nmodels:\n", f"\nmodels:{MODEL}").replace("\nroutes:\n", f"\nroutes:{ROUTE}")
    text = text.replace("requests_per_minute: 6000", "requests_per_minute: 1000000")
    text = text.replace("tokens_per_minute: 10000000", "tokens_per_minute: 1000000000")
    path = folder / "factory.yaml"
    path.write_text(f"{text}\nengines: {json.dumps(engines)}\n", encoding="utf-8")
    return path


async def _stream(client: httpx.AsyncClient, platform: Platform, outcomes: Outcomes, rng: random.Random) -> None:
    route = rng.choices(("slow", "rag"), (9, 1))[0]
    hangs_up = route == "slow" and rng.random() < 1 / 9  # a tenth of all
    question = f"How many days of annual leave do I have? {rng.random()}"
    body = {"model": route, "stream": True, "messages": [{"role": "user", "content": question}]}
    text = ""
    async with client.stream("POST", f"{platform.openai_url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            outcomes.failures.append(f"{response.status_code}: {(await response.aread()).decode()}")
            return
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
            if not line:
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                outcomes.failures.append(line)
                return
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if hangs_up and text:
                outcomes.hung_up += 1
                return
        else:
            outcomes.failures.append(f"broke off after {text!r}")
            return
    if route == "rag":
        outcomes.quoted += 1
    elif text == PIECE * PIECES:
        outcomes.finished += 1
    else:
        outcomes.failures.append(f"not the engine's text: {text!r}")


async def _client(platform: Platform, outcomes: Outcomes, rng: random.Random, end: float) -> None:
    headers = {"Authorization": f"Bearer {platform.key}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=60) as client:
        await asyncio.sleep(rng.uniform(0, 2))  # not all at once
        while time.monotonic() < end:
            await _stream(client, platform, outcomes, rng)


async def _memory(process: Process, end: float) -> list[int]:
    sizes = []
    while time.monotonic() < end:
        sizes.append(await asyncio.to_thread(process.resident_bytes))
        await asyncio.sleep(0.25)
    return sizes


async def _metrics(platform: Platform) -> Counter[str]:
    """The platform's metrics, summed over labels other than the model."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{platform.endpoints.http_url}/metrics")).text
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] += int(sample.value)
            if model := sample.labels.get("model"):
                totals[f"{sample.name} {model}"] += int(sample.value)
    return totals


async def _recorded(platform: Platform, outcome: monitor_pb2.Outcome.ValueType) -> int:
    platform.sign_in()
    count = 0
    async with channels.connect(platform.endpoints.socket("monitor")) as channel:
        stub = monitor_pb2_grpc.MonitorServiceStub(channel)
        request = monitor_pb2.QueryInteractionsRequest(
            filter=monitor_pb2.InteractionFilter(outcome=outcome, route="slow"), page_size=500
        )
        while True:
            page = await channels.unary(stub.QueryInteractions, request, timeout_seconds=30)
            count += len(page.interactions)
            if not page.next_page_token:
                return count
            request.page_token = page.next_page_token


@pytest.mark.soak
async def test_streams_whose_clients_hang_up_leave_no_work_no_error_and_no_memory_growth(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    slow: dict[str, object] = {"type": "fake", "models": ["slow"], "script_file": str(script)}
    engines: list[dict[str, object]] = [{"type": "extractive"}, {"type": "minilm"}, slow]
    arguments = (str(testing.SAMPLE), "--config", str(_factory(tmp_path, engines)))
    outcomes = Outcomes()
    async with testing.started(tmp_path / "state", *arguments) as process:
        platform = process.platform
        end = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(_memory(process, end))
            for number in range(STREAMS):
                tasks.create_task(_client(platform, outcomes, random.Random(number), end))
        async with asyncio.timeout(10):
            while (metrics := await _metrics(platform))["genaifactory_modelserver_requests_running"]:
                await asyncio.sleep(0.05)  # the last cancellations are on their way to the engine
        assert outcomes.failures == []
        assert outcomes.finished > STREAMS // 2  # each client has time for one, however slow the machine
        assert outcomes.quoted > 0
        assert outcomes.hung_up > 0
        assert metrics["genaifactory_modelserver_requests_cancelled_total slow"] == outcomes.hung_up
        assert metrics["genaifactory_modelserver_requests_finished_total slow"] == outcomes.finished
        assert metrics["genaifactory_modelserver_requests_queued"] == 0
        for outcome, count in (
            (monitor_pb2.OUTCOME_CANCELLED, outcomes.hung_up),
            (monitor_pb2.OUTCOME_ANSWERED, outcomes.finished),
        ):
            async with asyncio.timeout(20):  # the last records are on their way to monitor
                while await _recorded(platform, outcome) < count:
                    await asyncio.sleep(0.2)
            assert await _recorded(platform, outcome) == count
        assert await _recorded(platform, monitor_pb2.OUTCOME_FAILED) == 0
        assert await process.stop() == 0
    log = [json.loads(line) for line in platform.state.log_file.read_text(encoding="utf-8").splitlines()]
    assert [line for line in log if line["level"] in ("ERROR", "CRITICAL")] == []
    sizes = measuring.result()
    quarter = len(sizes) // 4
    settled, last = statistics.median(sizes[quarter : 2 * quarter]), statistics.median(sizes[-quarter:])
    assert last - settled < max(0.05 * settled, 16 * MEBIBYTE), f"{settled / MEBIBYTE:.0f} to {last / MEBIBYTE:.0f} MiB"
    print(
        f"{outcomes.finished} whole, {outcomes.quoted} quoted, {outcomes.hung_up} hung up; "
        f"memory {settled / MEBIBYTE:.0f} to {last / MEBIBYTE:.0f} MiB"
    )
