"""What the model server takes away from vLLM's speed on a GPU, and what a GPU's own features bring."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.bench import modelserver
from tests.bench.modelserver import Comparison, Setup
from tests.gpu import large_llama
from tests.vllm import processes
from tests.vllm.processes import connected, prompt


@pytest.fixture(scope="module")
def comparison(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Bare vLLM and the model server in turns, on one GPU."""
    setup = Setup(large, large_llama.HALF_A_GPU, rounds=7, tokens=256, lonely_requests=100)
    found = uvloop.run(modelserver.compare(setup, tmp_path_factory.mktemp("comparison")))
    modelserver.report(found)
    return found


def test_as_many_tokens_a_second_as_bare_vllm(comparison: Comparison) -> None:
    assert statistics.median(comparison.ratios()) >= 0.99


def test_the_first_token_comes_at_most_two_milliseconds_later(comparison: Comparison) -> None:
    assert comparison.added_first_seconds(0.99) <= 0.002


def test_cuda_graphs_are_captured_and_make_it_faster(large: Path, tmp_path: Path) -> None:
    args = {"max_model_len": 1024, "gpu_memory_utilization": 0.4}
    graphs, log = asyncio.run(_seconds(large, tmp_path / "graphs", {**args, "enforce_eager": False}))
    eager, eager_log = asyncio.run(_seconds(large, tmp_path / "eager", {**args, "enforce_eager": True}))
    assert "Graph capturing finished" in log
    assert "Graph capturing finished" not in eager_log
    assert graphs < 0.8 * eager


async def _seconds(model: Path, folder: Path, args: dict[str, Any]) -> tuple[float, str]:
    """The fastest of some answers of one client, and the server's log."""
    entry = processes.entry(model) | {"args": args}
    with processes.started(folder, [entry]) as server:
        await asyncio.to_thread(server.wait_until_ready, 600)
        taken = []
        async with connected(server) as client:
            for _ in range(5):
                began = time.perf_counter()
                answer = await client.ask(prompt("Annual leave", max_tokens=256))
                taken.append(time.perf_counter() - began)
                assert answer.usage.completion_tokens == 256
        return min(taken), server.log.read_text(encoding="utf-8")
