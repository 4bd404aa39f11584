"""What needs a GPU: FP8 weights, parallelism across GPUs (here of one), and sleep that gives memory back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common import channels
from genaifactory_common.errors import Unavailable
from tests.gpu import large_llama
from tests.vllm import processes
from tests.vllm.processes import Client, ModelServer, connected, prompt

# A fixed cache, so that what is used tells of the weights.
ARGS: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "gpu_memory_utilization": 0.4,
    "kv_cache_memory_bytes": 1 << 30,
    "enforce_eager": True,
}
STARTED = 600


@contextmanager
def served(model: Path, folder: Path, **args: Any) -> Iterator[ModelServer]:
    """A server with one model."""
    with processes.started(folder, [processes.entry(model) | {"args": {**ARGS, **args}}]) as server:
        yield server


def used_bytes() -> int:
    """Of the first GPU's memory."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return int(total - free)


async def bytes_and_text(model: Path, folder: Path, **args: Any) -> tuple[int, str]:
    """What a server takes of the GPU's memory, and what it answers."""
    before = used_bytes()
    with served(model, folder, **args) as server:
        await asyncio.to_thread(server.wait_until_ready, STARTED)
        async with connected(server) as client:
            text = (await client.ask(prompt("Annual leave"))).text
        return used_bytes() - before, text


async def test_fp8_weights_take_half_the_memory(large: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("FP8 needs a GPU of compute capability 8.9 (Ada, Hopper) or later")
    whole, _ = await bytes_and_text(large, tmp_path / "bfloat16")
    half, text = await bytes_and_text(large, tmp_path / "fp8", quantization="fp8")
    assert text
    # From two bytes a weight to one.
    assert whole - half > 0.8 * large_llama.PARAMETERS


async def test_one_gpu_in_parallel_answers_as_one_gpu_does(llama: Path, tmp_path: Path) -> None:
    _, plain = await bytes_and_text(llama, tmp_path / "plain", dtype="bfloat16")
    _, parallel = await bytes_and_text(llama, tmp_path / "parallel", dtype="bfloat16", tensor_parallel_size=1)
    assert parallel == plain != ""


async def test_more_gpus_than_there_are_is_an_error_that_names_the_argument(llama: Path, tmp_path: Path) -> None:
    import torch

    with served(llama, tmp_path, tensor_parallel_size=4 * torch.cuda.device_count()) as server:
        async with connected(server) as client, asyncio.timeout(STARTED):
            model = await _listed(client)
            while model.state == modelserver_pb2.MODEL_STATE_LOADING:
                await asyncio.sleep(0.5)
                model = await _listed(client)
    assert model.state == modelserver_pb2.MODEL_STATE_FAILED
    assert "'tensor_parallel_size'" in model.state_message


async def test_a_model_that_sleeps_gives_its_memory_back_and_wakes_as_it_was(large: Path, tmp_path: Path) -> None:
    empty = used_bytes()
    with served(large, tmp_path, enable_sleep_mode=True) as server:
        await asyncio.to_thread(server.wait_until_ready, STARTED)
        async with connected(server) as client:
            text = (await client.ask(prompt("Annual leave"))).text
            awake = used_bytes() - empty
            await channels.unary(client.stub.Sleep, modelserver_pb2.SleepRequest(model="tiny"), timeout_seconds=60)
            asleep = used_bytes() - empty
            assert (await _listed(client)).state == modelserver_pb2.MODEL_STATE_SLEEPING
            with pytest.raises(Unavailable):
                await client.ask(prompt("Annual leave"), seconds=20)
            await channels.unary(client.stub.Wake, modelserver_pb2.WakeRequest(model="tiny"), timeout_seconds=60)
            assert (await client.ask(prompt("Annual leave"))).text == text
            assert used_bytes() - empty > 0.9 * awake
    # Weights and cache; what is left is CUDA's own.
    assert awake - asleep > 2 * large_llama.PARAMETERS + 0.9 * ARGS["kv_cache_memory_bytes"]


async def _listed(client: Client) -> modelserver_pb2.Model:
    """The one model, once the server answers."""
    while True:
        try:
            return (await client.models())["tiny"]
        except Unavailable:
            await asyncio.sleep(0.2)
