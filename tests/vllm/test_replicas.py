"""The lives of two replicas: weights from a mirror, kill -9, a rolling restart under load, a dead engine, a drain.

A start with vLLM takes 20 CPU seconds, so the tests share four starts: they follow each other as they stand here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from genaifactory.modelserver.v1 import modelserver_pb2
from genaifactory_common.errors import FactoryError, NotFound, Unavailable
from tests.full import FULL
from tests.vllm import processes
from tests.vllm.processes import NOT_SERVING, SERVING, Client, greedy, prompt, wait_for
from tests.vllm.replicas import HOSTS, Replicas, mirror


@pytest.fixture(scope="module")
def replicas(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas that have been started, whose weights come from a mirror."""
    with ExitStack() as stack:
        yield Replicas(tmp_path_factory.mktemp("replicas"), stack.enter_context(mirror(llama)), stack)


async def test_weights_come_from_a_mirror_while_health_says_that_it_lives_and_is_not_ready(replicas: Replicas) -> None:
    server = replicas.servers[HOSTS[0]]
    wait_for(lambda: server.health("liveness") == SERVING, 30, "health")
    assert server.health() == NOT_SERVING
    async with replicas.at(HOSTS[0]) as client:
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


async def test_after_kill_9_the_same_adapters_serve_again(replicas: Replicas, many: dict[str, Path]) -> None:
    names = sorted(many)[:10]
    server = replicas.servers[HOSTS[0]]
    server.wait_until_ready()
    async with replicas.at(HOSTS[0]) as client:
        for name in names:
            await client.load(name, many[name])
        await client.unload(names[0])
        before = {name: await greedy(client, name) for name in names[1:]}
    left = server.engine_processes()
    assert left
    server.kill()
    processes.wait_until_gone(left, seconds=10)
    server = replicas.start(HOSTS[0])
    server.wait_until_ready()
    async with replicas.at(HOSTS[0]) as client:
        assert sorted(await client.models()) == sorted(["extractive", "tiny", *names[1:]])
        assert {name: await greedy(client, name) for name in names[1:]} == before
        with pytest.raises(NotFound):
            await greedy(client, names[0])


async def test_a_rolling_restart_of_two_replicas_under_load_fails_no_request(replicas: Replicas) -> None:
    failures: list[FactoryError] = []
    finished = {"count": 0}
    stop = asyncio.Event()
    calm = asyncio.Event()  # while a replica starts: load that takes the processor from it would show nothing more

    async def ask(client: Client, number: int) -> None:
        asked = 0
        while not stop.is_set():
            asked += 1
            request = prompt(f"{number} leave {asked}", max_tokens=40, sampling={"temperature": 1.0, "seed": number})
            try:
                answer = await client.ask(request, seconds=120)
                assert answer.messages[-1].HasField("usage")  # whole, never cut without a word
                finished["count"] += 1
            except FactoryError as error:
                failures.append(error)
                return
            if calm.is_set():
                await asyncio.sleep(2)

    def first_tokens() -> dict[str, float]:
        name = "genaifactory_modelserver_time_to_first_token_seconds_count"
        return {host: server.metric(name) for host, server in replicas.servers.items()}

    for server in replicas.running():
        server.wait_until_ready()
    async with replicas.behind_the_name() as client, asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(ask(client, number))
        for host in HOSTS if FULL else HOSTS[:1]:
            before = first_tokens()
            await more(finished, 30, failures)
            served = {each: count - before[each] for each, count in first_tokens().items()}
            assert all(served.values()), f"one replica gets nothing: {served}"
            ending = replicas.servers[host].process
            ending.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(ending.wait, 40) == 0
            await more(finished, 10, failures)  # the other one serves alone
            calm.set()
            await asyncio.to_thread(replicas.start(host).wait_until_ready)
            calm.clear()
            before = first_tokens()
            await more(finished, 60, failures)
            assert first_tokens()[host] > before[host], "the one that came back gets nothing"
        stop.set()
    assert failures == []


async def more(finished: dict[str, int], count: int, failures: list[FactoryError]) -> None:
    """Until so many more requests are finished; at once when one has failed."""
    wanted = finished["count"] + count
    async with asyncio.timeout(100):
        while finished["count"] < wanted:  # other tasks count
            assert failures == []
            await asyncio.sleep(0.05)


async def test_a_dead_engine_makes_the_server_unready_and_not_alive_and_says_so(replicas: Replicas) -> None:
    server = replicas.servers[HOSTS[1]]
    server.wait_until_ready()
    async with replicas.at(HOSTS[1]) as client:
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
        assert (await client.models())["tiny"].state == modelserver_pb2.MODEL_STATE_FAILED
        with pytest.raises(Unavailable, match="has died"):
            await client.ask(prompt("x"), seconds=10)
    assert server.stop() == 0


async def test_sigterm_finishes_the_streams_that_fit_into_the_drain_and_ends_the_others_with_a_word_to_try_again(
    replicas: Replicas,
) -> None:
    def streams(
        client: Client, count: int, tokens: int
    ) -> list[AsyncGenerator[modelserver_pb2.GenerateResponse, None]]:
        sampling = [{"temperature": 1.5, "seed": seed} for seed in range(count)]
        return [client.stream(prompt("leave", max_tokens=tokens, sampling=each), seconds=200) for each in sampling]

    server = replicas.servers[HOSTS[0]]
    server.wait_until_ready()
    engines = server.engine_processes()
    assert engines
    async with replicas.at(HOSTS[0]) as client:
        long, short = streams(client, 24, 2000), streams(client, 8, 20)
        await asyncio.gather(*map(anext, (*long, *short)))
        server.process.send_signal(signal.SIGTERM)
        outcomes = await asyncio.gather(*map(_drained, (*short, *long)), return_exceptions=True)
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    finished, ended = outcomes[: len(short)], outcomes[len(short) :]
    assert all(isinstance(each, int) and each for each in finished), finished
    failed = [each for each in ended if isinstance(each, BaseException)]
    assert failed, "the test's streams are too short to outlast the drain"
    for error in failed:
        assert isinstance(error, Unavailable)
        assert "another replica can answer" in error.message
        assert error.retry_after_seconds is not None
    processes.wait_until_gone(engines, seconds=10)


async def _drained(stream: AsyncIterator[modelserver_pb2.GenerateResponse]) -> int:
    """Reads to the end; how many tokens it had in all. Raises FactoryError."""
    tokens = 0
    async for message in stream:
        tokens = message.usage.completion_tokens or tokens
    return tokens
