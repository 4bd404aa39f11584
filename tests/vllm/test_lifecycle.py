"""A model server's life: weights from a mirror, honest health, clear words for what cannot start, a dead engine."""

from __future__ import annotations

import functools
import http.server
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, AnyStr

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.errors import Unavailable
from tests.vllm import processes
from tests.vllm.processes import NOT_SERVING, SERVING, connected, prompt

if TYPE_CHECKING:
    from _typeshed import SupportsRead, SupportsWrite

EXTRACTIVE = {"type": "extractive"}
FAILED = modelserver_pb2.MODEL_STATE_FAILED


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
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Mirror, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


async def test_weights_come_from_a_mirror_while_health_says_that_it_lives_and_is_not_ready(
    llama: Path, tmp_path: Path
) -> None:
    with mirror(llama) as address, processes.started(tmp_path, [EXTRACTIVE, processes.entry(address)]) as server:
        wait_for(lambda: server.health("liveness") == SERVING, 30, "health")
        assert server.health() == NOT_SERVING
        async with connected(server) as client:
            wait_for(lambda: server.metric("genaifactory_modelserver_source_bytes", part="fetched") > 0, 60, "bytes")
            states = {name: model.state for name, model in (await client.models()).items()}
            assert states["extractive"] == modelserver_pb2.MODEL_STATE_READY
            assert states["tiny"] == modelserver_pb2.MODEL_STATE_LOADING
            with pytest.raises(Unavailable, match="'tiny' cannot answer"):
                await client.ask(prompt("x"), seconds=10)
            server.wait_until_ready()
            assert (await client.ask(prompt("Annual leave", max_tokens=4))).usage.completion_tokens == 4
        assert "fetching 'tiny'" in server.log.read_text()
        assert server.stop() == 0


async def test_one_that_is_told_to_stop_while_it_loads_stops(llama: Path, tmp_path: Path) -> None:
    with processes.started(tmp_path, [processes.entry(llama)]) as server:
        wait_for(lambda: server.health("liveness") == SERVING, 30, "health")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        processes.wait_until_gone(server.engine_processes(), seconds=10)


async def test_a_dead_engine_makes_the_server_unready_and_not_alive_and_says_so(llama: Path, tmp_path: Path) -> None:
    with processes.started(tmp_path, [EXTRACTIVE, processes.entry(llama)]) as server:
        server.wait_until_ready()
        async with connected(server) as client:
            stream = client.stream(prompt("Annual leave", max_tokens=500, sampling={"temperature": 1.0}))
            await anext(stream)
            for pid in server.engine_processes():
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(Unavailable, match="died") as raised:
                async for _ in stream:
                    pass
            assert raised.value.retry_after_seconds is not None
            wait_for(lambda: server.health() == NOT_SERVING, 5, "unreadiness")
            wait_for(lambda: server.health("liveness") == NOT_SERVING, 5, "the end of its liveness")
            assert (await client.models())["tiny"].state == FAILED
            with pytest.raises(Unavailable, match="has died"):
                await client.ask(prompt("x"), seconds=10)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"max_model_len": "long"}, "'max_model_len' ('long')"),
        ({"quantization": "magic"}, "'quantization' ('magic')"),
        ({"tensor_parallel_size": 0}, "'tensor_parallel_size' (0)"),
        ({"speculative_config": {"method": "wishing", "num_speculative_tokens": 2}}, "'speculative_config'"),
        ({"dtype": "int3"}, "'dtype' ('int3')"),
        ({"max_model_len": 100_000_000}, "'max_model_len' (100000000)"),
    ],
)
async def test_a_wrong_argument_is_named_and_the_other_engines_serve(
    llama: Path, tmp_path: Path, args: dict[str, Any], said: str
) -> None:
    with processes.started(tmp_path, [EXTRACTIVE, processes.entry(llama, args=args)]) as server:
        await _fails(server, said)


async def test_too_little_memory_is_said_with_what_to_lower_and_the_other_engines_serve(
    llama: Path, tmp_path: Path
) -> None:
    args = {"kv_cache_memory_bytes": 1 << 20, "max_model_len": 2048}
    with processes.started(tmp_path, [EXTRACTIVE, processes.entry(llama, args=args)]) as server:
        await _fails(server, "not enough memory")


async def test_memory_that_the_machine_does_not_have_is_said_too(llama: Path, tmp_path: Path) -> None:
    with processes.started(
        tmp_path, [EXTRACTIVE, processes.entry(llama, args={"kv_cache_memory_bytes": 1 << 50})]
    ) as server:
        await _fails(server, "not enough memory")


async def test_a_server_that_has_nothing_to_serve_ends_with_the_reason(tmp_path: Path) -> None:
    with processes.started(tmp_path, [processes.entry(tmp_path / "nowhere")]) as server:
        assert server.process.wait(60) == 1
        assert "modelserver: There is no folder" in server.tail()


async def _fails(server: processes.ModelServer, said: str) -> None:
    import re

    async with connected(server) as client:
        deadline = time.monotonic() + 240
        while True:
            assert server.process.poll() is None, server.tail()
            assert time.monotonic() < deadline, server.tail()
            if server.health() is not None:
                models = await client.models()
                if models["tiny"].state == FAILED:
                    break
            time.sleep(0.2)  # noqa: ASYNC251  # nothing else goes on here
        message = models["tiny"].state_message
        assert said in message or re.search(said, message), message
        assert "Traceback" not in message
        with pytest.raises(Unavailable) as raised:
            await client.ask(prompt("x"), seconds=10)
        assert message in raised.value.message
        question = prompt("How long is the warranty?", "extractive")
        question.documents.add(title="W", text="The warranty period is 24 months.")
        assert "24 months" in (await client.ask(question)).text
    wait_for(lambda: server.health() == NOT_SERVING, 5, "unreadiness")
    wait_for(lambda: server.health("liveness") == NOT_SERVING, 5, "the end of its liveness")
    assert "\n" not in message
