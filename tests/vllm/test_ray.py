"""Ray Serve: replicas of the same engine behind the same gRPC service, as many as the load asks for."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.errors import DeadlineExceeded, Overloaded, Unavailable
from tests import ports
from tests.vllm import processes
from tests.vllm.processes import NOT_SERVING, SERVING, Client, ModelServer, prompt

# Seconds: a replica with vLLM starts in 20, on a busy machine in more.
START = 180
FAKE_SCRIPT = {
    "rules": [
        {"contains": "slow", "pieces": ["slow "], "repeat": 100, "delay_seconds": 0.02},
        {"contains": "hang", "pieces": ["I "], "hang": True},
        {"contains": "boom", "pieces": ["I "], "error": {"reason": "OVERLOADED", "retry_after_seconds": 3}},
    ]
}
PROMPTS = ("The model server", "Người dùng có thể", "Every replica", "An adapter is")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the fake engine, which costs less to start than vLLM."""
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(FAKE_SCRIPT))
    return path


@pytest.fixture(scope="module")
def ray_server(
    llama: Path, adapters: dict[str, Path], script: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    """Two replicas with vLLM, and a fake engine of one replica or two, on a cluster of the server's own."""
    declared = {"max_loaded": 4, "serve": [{"name": "a", "source": str(adapters["a"])}]}
    tiny = processes.entry(llama, adapters=declared, ray={"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5})
    scale = {
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_seconds": 1,
        "downscale_delay_seconds": 2,
        "num_cpus": 0.2,
    }
    fake = {"type": "fake", "max_running": 16, "script_file": str(script), "ray": scale}
    with processes.started(tmp_path_factory.mktemp("ray"), [tiny, fake]) as running:
        _wait(lambda: running.health() == SERVING or running.health("liveness") == NOT_SERVING, START)
        assert running.health() == SERVING, running.tail()
        _wait(lambda: len(_replicas(running.process, "tiny")) == 2, START)
        yield running


def _replicas(head: subprocess.Popen[bytes], model: str) -> list[int]:
    start = f"ray::ServeReplica:genaifactory-{model}:"
    return [pid for pid, command in processes.descendants(head.pid).items() if command.startswith(start)]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(condition: Callable[[], bool], seconds: float, state: Callable[[], str] = str) -> None:
    """Fails after `seconds` with what `state` says then."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{state()}"
        time.sleep(0.5)


async def _insist(client: Client, request: modelserver_pb2.GenerateRequest) -> str:
    """The answer; asks again when the server says that this may help, as the orchestrator does."""
    for _ in range(20):
        try:
            return (await client.ask(request)).text
        except Unavailable as error:
            if error.retry_after_seconds is None:
                raise
            await asyncio.sleep(error.retry_after_seconds)
    raise AssertionError("unavailable, 20 times")


async def _work(engines: list[int], work: AsyncIterator[None]) -> list[float]:
    """CPU seconds that each engine spends on it."""
    before = [_cpu_seconds(pid) for pid in engines]
    async for _ in work:
        pass
    return [_cpu_seconds(pid) - spent for pid, spent in zip(engines, before, strict=True)]


async def test_two_replicas_answer_as_one_and_share_the_work(ray_server: ModelServer) -> None:
    async with processes.connected(ray_server) as client:
        listed = await client.models()
        assert {name: (model.engine, model.base_model) for name, model in listed.items()} == {
            "tiny": ("vllm", ""),
            "a": ("vllm", "tiny"),
            "fake": ("fake", ""),
        }
        assert listed["tiny"].context_tokens == processes.ARGS["max_model_len"]
        alone = {text: (await client.ask(prompt(text, max_tokens=32))).text for text in PROMPTS}

        async def work() -> AsyncIterator[None]:
            for _ in range(4):
                answers = await asyncio.gather(*(client.ask(prompt(text, max_tokens=32)) for text in PROMPTS * 4))
                assert [answer.text for answer in answers] == list(alone.values()) * 4
                assert all(answer.usage.completion_tokens == 32 for answer in answers)
                yield

        spent = await _work(ray_server.engine_processes(), work())
        assert len(spent) == 2
        assert min(spent) > 0.2 * max(spent)


async def test_an_adapter_is_served_by_every_replica_but_asked_of_the_one_that_holds_it(
    ray_server: ModelServer, adapters: dict[str, Path]
) -> None:
    async with processes.connected(ray_server) as client:
        await client.load("b", adapters["b"])
        models = ("tiny", "a", "b")
        alone = {model: (await client.ask(prompt(PROMPTS[0], model))).text for model in models}
        assert len(set(alone.values())) == 3
        # More than one replica would be given at once: both load what they do not hold.
        answers = await asyncio.gather(*(client.ask(prompt(PROMPTS[0], model)) for model in models * 12))
        assert [answer.text for answer in answers] == list(alone.values()) * 12

        await client.load("c", adapters["c"])

        async def work() -> AsyncIterator[None]:
            for number in range(30):
                if number == 10:
                    settled.append([_cpu_seconds(pid) for pid in engines])
                assert (await client.ask(prompt(PROMPTS[0], "c"))).usage.completion_tokens == 24
                yield

        settled: list[list[float]] = []
        engines = ray_server.engine_processes()
        await _work(engines, work())
        spent = [_cpu_seconds(pid) - before for pid, before in zip(engines, settled[0], strict=True)]
        assert min(spent) < 0.25 * max(spent)
        await client.unload("b")
        assert set(await client.models()) == {"tiny", "a", "c", "fake"}


async def test_a_killed_replica_is_replaced_while_no_request_fails(ray_server: ModelServer) -> None:
    async with processes.connected(ray_server) as client:
        models = ("tiny", "a", "c")
        expected = {model: (await client.ask(prompt(PROMPTS[1], model))).text for model in models}
        before = _replicas(ray_server.process, "tiny")
        replaced = asyncio.Event()
        asked = 0

        async def ask(model: str) -> None:
            nonlocal asked
            while not replaced.is_set():
                assert await _insist(client, prompt(PROMPTS[1], model)) == expected[model]
                asked += 1
                await asyncio.sleep(1)  # more load would only take the processor from the replica that starts

        async with asyncio.TaskGroup() as group:
            for model in models * 2:
                group.create_task(ask(model))
            os.kill(before[0], signal.SIGKILL)
            await asyncio.to_thread(
                _wait, lambda: _settled(ray_server, before[0]), START, lambda: _state(ray_server, before)
            )
            replaced.set()
        assert asked > 20
        answers = await asyncio.gather(*(client.ask(prompt(PROMPTS[1], model)) for model in models * 8))
        assert [answer.text for answer in answers] == list(expected.values()) * 8


def _settled(server: ModelServer, gone: int) -> bool:
    """Whether two replicas run with an engine each, none of them the one that is gone."""
    replicas = _replicas(server.process, "tiny")
    return gone not in replicas and len(replicas) == 2 and len(server.engine_processes()) == 2


def _state(server: ModelServer, before: list[int]) -> str:
    """The processes below the server, and the end of its log."""
    below = "\n".join(f"{pid} {command[:120]}" for pid, command in processes.descendants(server.process.pid).items())
    return f"replicas before: {before}\n{below}\n{server.tail()}"


async def test_replicas_come_with_the_load_and_go_with_it(ray_server: ModelServer) -> None:
    async with processes.connected(ray_server) as client:
        assert len(_replicas(ray_server.process, "fake")) == 1
        grown = asyncio.Event()

        async def ask() -> None:
            while not grown.is_set():
                assert (await client.ask(prompt("slow", "fake", max_tokens=200))).text == "slow " * 100

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(ask())
            await asyncio.to_thread(_wait, lambda: len(_replicas(ray_server.process, "fake")) == 2, 60)
            grown.set()
        await asyncio.to_thread(_wait, lambda: len(_replicas(ray_server.process, "fake")) == 1, 60)
        assert (await client.ask(prompt("hello", "fake"))).text == "echo: hello"


async def test_a_client_that_leaves_frees_its_place_at_the_replica(ray_server: ModelServer) -> None:
    async def leave(client: Client) -> None:
        async for message in client.stream(prompt("hang", "fake")):
            assert message.delta == "I "
            return

    async with processes.connected(ray_server) as client:
        # A replica takes 24 requests at once: were any kept, the fourth round would wait for ever.
        for _ in range(8):
            async with asyncio.timeout(30):
                await asyncio.gather(*(leave(client) for _ in range(16)))
        assert (await client.ask(prompt("hello", "fake"))).text == "echo: hello"


async def test_errors_and_deadlines_come_through_as_from_a_plain_server(ray_server: ModelServer) -> None:
    async with processes.connected(ray_server) as client:
        with pytest.raises(Overloaded) as refused:
            await client.ask(prompt("boom", "fake"))
        assert refused.value.retry_after_seconds == 3
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.ask(prompt("hang", "fake"), seconds=1)
        assert time.monotonic() - started < 3


def test_what_keeps_replicas_from_starting_is_told_as_by_a_plain_server(tmp_path: Path) -> None:
    fake = {"type": "fake", "script_file": str(tmp_path / "missing.json"), "ray": {"num_cpus": 0.2}}
    with processes.started(tmp_path / "server", [fake]) as server:
        assert server.process.wait(90) == 1
        assert f"The script {tmp_path}/missing.json cannot be read" in server.tail().splitlines()[-1]
        # It was the leader of a session, in which Ray's processes are as well.
        # One that has ended is listed until its parent has read its status.
        processes.wait_for(lambda: not server.session(), 10, "the end of Ray's processes")


async def test_replicas_on_a_cluster_of_its_own_outlive_the_server_and_change_with_the_entry(
    script: Path, tmp_path: Path
) -> None:
    scale = {"num_cpus": 0.2, "bundles": [{"CPU": 0.2}, {"CPU": 0.2}]}
    fake = {"type": "fake", "max_running": 16, "script_file": str(script), "ray": scale}
    with _cluster(tmp_path / "ray.txt") as (head, environment):
        seen = []
        for change in ({}, {}, {"max_running": 8}):
            engine = fake | change
            with processes.started(tmp_path / "server", [engine], **environment) as server:
                await asyncio.to_thread(server.wait_until_ready, 90)
                async with processes.connected(server) as client:
                    assert (await client.ask(prompt("hello", "fake"))).text == "echo: hello"
                seen.append(_replicas(head, "fake"))
                assert server.stop() == 0
            assert _replicas(head, "fake") == seen[-1]
    first, second, third = seen
    assert first == second
    assert len(first) == len(third) == 1
    assert first != third


@contextmanager
def _cluster(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A Ray cluster of one node, and the variables with which a server joins it."""
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = Path(sys.executable).with_name("ray")
    port = ports.free_port()
    arguments = (
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    )
    with log.open("wb") as output:
        head = subprocess.Popen(
            (command, *arguments, "--object-store-memory=80000000", "--disable-usage-stats"),
            env={**os.environ, **secret},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(lambda: head.poll() is not None or b"Ray runtime started" in log.read_bytes(), 60)
        assert head.poll() is None, log.read_text()
        yield head, {"GENAIFACTORY_RAY_ADDRESS": f"127.0.0.1:{port}", **secret}
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # told to end, it would drain for half a minute
        head.wait()
