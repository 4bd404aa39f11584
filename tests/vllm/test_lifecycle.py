"""Model servers that do not come to serve: one that is stopped while it loads, and clear words for what cannot be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.errors import Unavailable
from tests.vllm import processes
from tests.vllm.processes import NOT_SERVING, SERVING, ModelServer, connected, prompt, wait_for

EXTRACTIVE = {"type": "extractive"}
FAILED = modelserver_pb2.MODEL_STATE_FAILED
# Of vLLM's engines, each of which cannot start: arguments, and what is said of them.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"max_model_len": "long"}, "'max_model_len' ('long')"),
    "quantization": ({"quantization": "magic"}, "'quantization' ('magic')"),
    "parallel": ({"tensor_parallel_size": 0}, "'tensor_parallel_size' (0)"),
    "speculative": (
        {"speculative_config": {"method": "wishing", "num_speculative_tokens": 2}},
        "'speculative_config'",
    ),
    "dtype": ({"dtype": "int3"}, "'dtype' ('int3')"),
    "context": ({"max_model_len": 100_000_000}, "'max_model_len' (100000000)"),
    "little": ({"kv_cache_memory_bytes": 1 << 20, "max_model_len": 2048}, "not enough memory"),
    "much": ({"kv_cache_memory_bytes": 1 << 50}, "not enough memory"),
}


async def test_one_that_is_told_to_stop_while_it_loads_stops(llama: Path, tmp_path: Path) -> None:
    with processes.started(tmp_path, [processes.entry(llama)]) as server:
        wait_for(lambda: server.health("liveness") == SERVING, 30, "health")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        wait_for(lambda: not server.session(), 10, "the end of what it had started")


@pytest.fixture(scope="module")
def refusing(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server of which no engine with vLLM can start."""
    engines = [processes.entry(llama, name, args=args) for name, (args, _) in WRONG.items()]
    with processes.started(tmp_path_factory.mktemp("refusing"), [EXTRACTIVE, *engines]) as running:
        yield running


@pytest.mark.parametrize("name", WRONG)
async def test_what_keeps_an_engine_from_starting_is_said_and_the_other_engines_serve(
    refusing: ModelServer, name: str
) -> None:
    """A wrong argument by its name and value; too little memory, the machine's or the cache's, with what to lower."""
    _, said = WRONG[name]
    async with connected(refusing) as client:
        deadline = time.monotonic() + 240
        while True:
            assert refusing.process.poll() is None, refusing.tail()
            assert time.monotonic() < deadline, refusing.tail()
            if refusing.health() is not None:
                model = (await client.models())[name]
                if model.state == FAILED:
                    break
            time.sleep(0.2)  # noqa: ASYNC251  # nothing else goes on here
        message = model.state_message
        assert said in message
        assert "Traceback" not in message
        with pytest.raises(Unavailable) as raised:
            await client.ask(prompt("x", name), seconds=10)
        assert message in raised.value.message
        question = prompt("How long is the warranty?", "extractive")
        question.documents.add(title="W", text="The warranty period is 24 months.")
        assert "24 months" in (await client.ask(question)).text
    wait_for(lambda: refusing.health() == NOT_SERVING, 5, "unreadiness")
    wait_for(lambda: refusing.health("liveness") == NOT_SERVING, 5, "the end of its liveness")
    assert "\n" not in message


async def test_a_server_that_has_nothing_to_serve_ends_with_the_reason(tmp_path: Path) -> None:
    with processes.started(tmp_path, [processes.entry(tmp_path / "nowhere")]) as server:
        assert server.process.wait(60) == 1
        assert "modelserver: There is no folder" in server.tail()
