"""A model server's life: weights from a mirror, honest health, kill -9, a dead engine, clear words for what cannot be.

A start with vLLM takes 20 CPU seconds, so tests share servers: those of `lives` follow each other as they stand here.
"""

from __future__ import annotations

import functools
import http.server
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, AnyStr

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.errors import NotFound, Unavailable
from tests.vllm import processes
from tests.vllm.processes import MAX_LOADED, NOT_SERVING, SERVING, ModelServer, connected, greedy, prompt

if TYPE_CHECKING:
    from _typeshed import SupportsRead, SupportsWrite

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


@dataclass
class Lives:
    """A data folder, and the servers that run on it, one after the other."""

    folder: Path
    engines: list[dict[str, Any]]
    stack: ExitStack = field(repr=False)
    server: ModelServer = field(init=False)

    def start(self) -> ModelServer:
        """Starts the next one."""
        self.server = self.stack.enter_context(processes.started(self.folder, self.engines))
        return self.server


@pytest.fixture(scope="module")
def lives(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """A server that has been started, whose weights come from a mirror."""
    with ExitStack() as stack:
        address = stack.enter_context(mirror(llama))
        engines = [EXTRACTIVE, processes.entry(address, adapters={"max_loaded": MAX_LOADED})]
        shared = Lives(tmp_path_factory.mktemp("lives"), engines, stack)
        shared.start()
        yield shared


async def test_weights_come_from_a_mirror_while_health_says_that_it_lives_and_is_not_ready(lives: Lives) -> None:
    server = lives.server
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
    assert "hold no chat template" not in server.log.read_text()


async def test_after_kill_9_the_same_adapters_serve_again(lives: Lives, many: dict[str, Path]) -> None:
    names = sorted(many)[:10]
    server = lives.server
    server.wait_until_ready()
    async with connected(server) as client:
        for name in names:
            await client.load(name, many[name])
        await client.unload(names[0])
        before = {name: await greedy(client, name) for name in names[1:]}
    left = server.engine_processes()
    assert left
    server.kill()
    processes.wait_until_gone(left, seconds=10)
    server = lives.start()
    server.wait_until_ready()
    async with connected(server) as client:
        assert sorted(await client.models()) == sorted(["extractive", "tiny", *names[1:]])
        assert {name: await greedy(client, name) for name in names[1:]} == before
        with pytest.raises(NotFound):
            await greedy(client, names[0])


async def test_a_dead_engine_makes_the_server_unready_and_not_alive_and_says_so(lives: Lives) -> None:
    server = lives.server
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


async def test_one_that_is_told_to_stop_while_it_loads_stops(llama: Path, tmp_path: Path) -> None:
    with processes.started(tmp_path, [processes.entry(llama)]) as server:
        wait_for(lambda: server.health("liveness") == SERVING, 30, "health")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        processes.wait_until_gone(server.engine_processes(), seconds=10)


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
