"""Adapters come and go while the server works: no wrong answer, no failed request, and a restart forgets none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from genaifactory_common.errors import Conflict, InvalidArgument, NotFound
from tests.data import tiny_llama
from tests.vllm.processes import MAX_LOADED, ModelServer, connected, greedy

MAX_GROWTH_BYTES = 200 << 20


def memory(server: ModelServer) -> int:
    """Bytes that the server and vLLM's processes hold."""
    pids = [server.process.pid, *server.engine_processes()]
    lines = [
        line
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    ]
    return sum(int(line.split()[1]) * 1024 for line in lines)


async def test_adapters_come_and_go_in_random_order_under_load(server: ModelServer, many: dict[str, Path]) -> None:
    rng = random.Random(7)
    expected: dict[str, str] = {}
    async with connected(server) as client:
        base = await greedy(client, "tiny")
        failed = server.metric("genaifactory_modelserver_adapter_loads_total", outcome="failed")
        for name, folder in many.items():
            await client.load(name, folder)
            expected[name] = await greedy(client, name)
            await client.unload(name)
        assert len({base, *expected.values()}) > len(many) * 0.9  # they can be told apart
        settled = memory(server)

        available: set[str] = set()
        using: dict[str, int] = dict.fromkeys(many, 0)
        asked = 0
        going = True

        async def ask_some() -> None:
            nonlocal asked
            while going:
                name = rng.choice(["tiny", *sorted(available)])
                if name == "tiny":
                    assert await greedy(client, "tiny") == base
                else:
                    using[name] += 1
                    assert await greedy(client, name) == expected[name]
                    using[name] -= 1
                asked += 1

        async def change() -> None:
            order = sorted(many) * 2
            rng.shuffle(order)
            for name in order:
                if name in available:
                    available.discard(name)  # nobody asks for it from here on; who has asked is answered
                    await client.unload(name, seconds=120)
                else:
                    await client.load(name, many[name], seconds=120)
                    available.add(name)

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask_some()) for _ in range(6)]
            await change()
            going = False
            await asyncio.gather(*asking)
        assert asked > len(many)
        assert server.metric("genaifactory_modelserver_adapters_loaded") <= MAX_LOADED
        assert server.metric("genaifactory_modelserver_adapters_evicted_total") > 0
        assert server.metric("genaifactory_modelserver_adapter_loads_total", outcome="failed") == failed
        assert memory(server) - settled < MAX_GROWTH_BYTES


async def test_a_new_version_answers_under_the_old_name_and_nothing_of_the_old_is_left(
    server: ModelServer, many: dict[str, Path], tmp_path: Path
) -> None:
    """Also the beginnings of prompts that were computed with the old weights."""
    folder = tmp_path / "versions"
    shutil.copytree(many["x1"], folder)
    async with connected(server) as client:
        await client.load("versioned", folder)
        first = await greedy(client, "versioned")
        shutil.copytree(many["x2"], folder, dirs_exist_ok=True)
        await client.load("versioned", folder)
        second = await greedy(client, "versioned")
        await client.load("plain", many["x2"])
        assert second == await greedy(client, "plain") != first
        for name in ("versioned", "plain"):
            await client.unload(name)


async def test_requests_for_an_adapter_that_is_being_loaded_wait_for_it(
    server: ModelServer, many: dict[str, Path]
) -> None:
    async with connected(server) as client:
        loading = asyncio.create_task(client.load("waited", many["x3"]))
        await asyncio.sleep(0.01)
        answers = [asyncio.create_task(greedy(client, "waited")) for _ in range(4)]
        await loading
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        texts = {each for each in outcomes if isinstance(each, str)}
        assert len(texts) == 1
        # One that came before the server had heard of the adapter is told that there is none; nothing else fails.
        assert {type(each) for each in outcomes} <= {str, NotFound}
        await client.unload("waited")


async def test_wrong_adapters_are_refused_with_their_fault_and_the_server_lives_on(
    server: ModelServer, llama: Path, many: dict[str, Path], tmp_path: Path
) -> None:
    def changed(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(many["x5"], folder)
        return folder

    other_base = changed("other-base")
    metadata = json.loads((other_base / "metadata.json").read_text())
    (other_base / "metadata.json").write_text(json.dumps(metadata | {"base_model": "huge"}))
    corrupt = changed("corrupt")
    weights = corrupt / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (corrupt / "metadata.json").write_text(json.dumps(metadata | {"sha256": digest}))
    changed_bits = changed("bits")
    body = bytearray((changed_bits / "adapter_model.safetensors").read_bytes())
    body[-10] ^= 1
    (changed_bits / "adapter_model.safetensors").write_bytes(bytes(body))
    no_metadata = changed("no-metadata")
    (no_metadata / "metadata.json").unlink()
    high_rank = tiny_llama.make_adapter(tmp_path / "rank", llama, name="rank", seed=1, rank=32)

    async with connected(server) as client:
        base = await greedy(client, "tiny")
        for folder, said in (
            (other_base, "huge"),
            (corrupt, "cut off or damaged"),
            (changed_bits, "SHA-256"),
            (no_metadata, "metadata.json"),
            (high_rank, "rank 32"),
        ):
            with pytest.raises(InvalidArgument, match=said):
                await client.load("wrong", folder)
        with pytest.raises((InvalidArgument, NotFound), match="nowhere"):
            await client.load("wrong", tmp_path / "nowhere")
        with pytest.raises(InvalidArgument, match=r"SHA-256 .* is asked for"):
            await client.load("wrong", many["x5"], "0" * 64)
        with pytest.raises(Conflict, match="'tiny'"):
            await client.load("tiny", many["x5"])
        with pytest.raises(InvalidArgument, match="not an adapter"):
            await client.unload("tiny")
        await client.unload("never-loaded")
        assert "wrong" not in await client.models()
        assert await greedy(client, "tiny") == base
