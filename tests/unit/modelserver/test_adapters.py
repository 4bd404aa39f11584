"""Adapters of a base model: who is in the engine, who waits, who gives way, and what a restart brings back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from genaifactory_common.backoff import Backoff
from genaifactory_common.engine_specs import Adapter, Adapters
from genaifactory_common.errors import Conflict, InvalidArgument, TooLarge, Unavailable
from genaifactory_modelserver.adapters.set import AdapterSet, Files, Loaded


class Engine:
    """Holds adapters as vLLM would, and notes what is inside; `gate` lets loading wait."""

    def __init__(self) -> None:
        self.inside: dict[int, Loaded] = {}
        self.most = 0
        self.loads: list[str] = []
        self.refused: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def put_in(self, adapter: Loaded) -> None:
        self.loads.append(adapter.name)
        await self.gate.wait()
        await asyncio.sleep(0)
        if adapter.name in self.refused:
            raise InvalidArgument("too odd", field="source_uri")
        self.inside[adapter.id] = adapter
        self.most = max(self.most, len(self.inside))

    async def take_out(self, adapter: Loaded) -> None:
        await asyncio.sleep(0)
        assert not adapter.users
        del self.inside[adapter.id]

    def names(self) -> list[str]:
        return sorted(adapter.name for adapter in self.inside.values())


class Sources:
    """Where adapters come from: a version for each name; a source may be away."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.away: set[str] = set()
        self.store: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, adapter: Adapter) -> Files:
        await self.gate.wait()
        sha256 = f"{adapter.name}{self.versions.get(adapter.name, 0)}".encode().hex().ljust(64, "0")
        if adapter.name in self.away:
            if adapter.sha256 in self.store:
                return Files(Path(adapter.sha256), adapter.sha256)
            raise Unavailable("the source is away")
        if adapter.sha256 not in ("", sha256):
            raise InvalidArgument("another checksum", field="sha256")
        self.store.add(sha256)
        return Files(Path(sha256), sha256)


class World:
    def __init__(self, folder: Path) -> None:
        self.engine = Engine()
        self.sources = Sources()
        self.register = folder / "adapters.json"

    @asynccontextmanager
    async def opened(
        self, *declared: str, engine: Engine | None = None, max_loaded: int = 2, max_known: int = 50
    ) -> AsyncIterator[AdapterSet]:
        spec = Adapters(max_loaded=max_loaded, max_known=max_known)
        adapters = AdapterSet(spec, engine or self.engine, self.sources.fetch, self.register, model="base")
        await adapters.open([made(name) for name in declared])
        try:
            yield adapters
        finally:
            await adapters.close()


def made(name: str, **rest: str) -> Adapter:
    return Adapter(name=name, source=f"/adapters/{name}", **rest)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: object) -> None:
    """Waits for what another thread (the register's) brings about."""
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # another thread brings it about
            await asyncio.sleep(0.001)


async def test_declared_adapters_are_in_the_engine_from_the_start_as_many_as_fit(world: World) -> None:
    async with world.opened("a", "b", "c", max_loaded=2) as adapters:
        assert world.engine.names() == ["a", "b"]
        assert sorted(adapters.names()) == ["a", "b", "c"]
        async with adapters.using("c") as loaded:
            assert world.engine.inside[loaded.id].name == "c"


async def test_the_least_recently_used_gives_way(world: World) -> None:
    async with world.opened("a", "b", "c", max_loaded=2) as adapters:
        for name in ("b", "a", "c"):
            async with adapters.using(name):
                pass
        assert world.engine.names() == ["a", "c"]
        assert world.engine.most == 2


async def test_one_in_use_is_never_taken_out_and_the_next_waits_for_a_place(world: World) -> None:
    async with world.opened("a", "b", "c", max_loaded=2) as adapters, AsyncExitStack() as using:
        await using.enter_async_context(adapters.using("a"))
        busy = await using.enter_async_context(adapters.using("b"))
        waiting = asyncio.create_task(adapters.using("c").__aenter__())
        await turn()
        assert not waiting.done()
        assert world.engine.names() == ["a", "b"]
        adapters._release(busy)  # as the end of its block would
        assert (await waiting).name == "c"
        assert world.engine.names() == ["a", "c"]
        busy.users += 1  # taken back for the block's end


async def test_requests_for_an_adapter_that_is_being_loaded_wait_for_it_and_load_it_once(world: World) -> None:
    async with world.opened() as adapters:
        world.engine.gate.clear()
        loading = asyncio.create_task(adapters.load(made("a")))
        await until(lambda: world.engine.loads == ["a"])
        assert "a" in adapters  # it can be asked for already

        async def ask() -> str:
            async with adapters.using("a") as loaded:
                return loaded.files.sha256

        asking = [asyncio.create_task(ask()) for _ in range(5)]
        await turn()
        assert not any(task.done() for task in asking)
        world.engine.gate.set()
        await loading
        assert len({await task for task in asking}) == 1
        assert world.engine.loads == ["a"]


async def test_a_request_that_gives_up_while_its_adapter_loads_leaves_it_idle(world: World) -> None:
    async with world.opened("a", "b", max_loaded=1) as adapters:
        world.engine.gate.clear()
        waiting = asyncio.create_task(adapters.using("b").__aenter__())
        await turn()
        waiting.cancel()
        await asyncio.wait((waiting,))
        world.engine.gate.set()
        async with adapters.using("a"):
            assert world.engine.names() == ["a"]
        assert world.engine.most == 1


async def test_one_unloaded_before_it_is_in_does_not_stay_in(world: World) -> None:
    async with world.opened() as adapters:
        await adapters.load(made("a"))
        await adapters.load(made("b"))
        await adapters.load(made("c"))  # a has given way
        world.engine.gate.clear()
        waiting = asyncio.create_task(adapters.using("a").__aenter__())
        await turn()
        unloading = asyncio.create_task(adapters.unload("a"))
        await until(lambda: "a" not in adapters)
        waiting.cancel()
        await asyncio.wait((waiting,))
        world.engine.gate.set()
        await unloading
        assert "a" not in world.engine.names()


async def test_a_new_version_is_served_beside_the_old_one_until_that_is_idle(world: World) -> None:
    async with world.opened(max_loaded=3) as adapters:
        await adapters.load(made("a"))
        async with adapters.using("a") as old:
            world.sources.versions["a"] = 1
            await adapters.load(made("a"))
            async with adapters.using("a") as new:
                assert new.files.sha256 != old.files.sha256
                assert world.engine.names() == ["a", "a"]
        await turn()
        assert [each.id for each in world.engine.inside.values()] == [new.id]


async def test_loading_what_is_loaded_does_nothing(world: World) -> None:
    async with world.opened() as adapters:
        await adapters.load(made("a"))
        await adapters.load(made("a"))
        assert world.engine.loads == ["a"]


async def test_unloading_waits_for_the_requests_that_use_it(world: World) -> None:
    async with world.opened() as adapters:
        await adapters.load(made("a"))
        async with adapters.using("a"):
            unloading = asyncio.create_task(adapters.unload("a"))
            await until(lambda: "a" not in adapters)
            await turn()
            assert not unloading.done()
            assert world.engine.names() == ["a"]
        await unloading
        assert world.engine.names() == []
        with pytest.raises(Unavailable, match="'a' is not loaded"):
            async with adapters.using("a"):
                raise AssertionError("unloaded")


@pytest.mark.allow_blocking  # looks for a file
async def test_what_the_engine_refuses_is_not_known_and_leaves_its_place(world: World) -> None:
    async with world.opened(max_loaded=1) as adapters:
        world.engine.refused.add("odd")
        with pytest.raises(InvalidArgument, match="too odd"):
            await adapters.load(made("odd"))
        assert "odd" not in adapters
        assert not world.register.exists()
        await adapters.load(made("a"))
        assert world.engine.names() == ["a"]


async def test_what_was_loaded_is_served_after_a_restart_and_by_other_replicas(world: World) -> None:
    other = Engine()
    async with world.opened() as adapters, world.opened(engine=other) as replica:
        await adapters.load(made("a"))
        assert "a" not in replica
        await replica.refresh()
        async with replica.using("a"):
            assert other.names() == ["a"]
        await adapters.unload("a")
        await replica.refresh()
        await turn()
        assert "a" not in replica
        assert other.names() == []
        await adapters.load(made("b"))
    restarted = Engine()
    async with world.opened(engine=restarted) as adapters:
        assert list(adapters.names()) == ["b"]
        assert restarted.names() == ["b"]


async def test_a_declared_adapter_whose_source_is_away_is_served_as_it_was_fetched_before(world: World) -> None:
    async with world.opened("a"):
        pass
    world.sources.away.add("a")
    async with world.opened("a") as adapters, adapters.using("a"):
        assert world.engine.names()[-1] == "a"


async def test_a_declared_adapter_that_cannot_be_had_says_why_and_leaves_the_others_alone(world: World) -> None:
    world.sources.away.add("a")
    async with world.opened("a", "b") as adapters:
        with pytest.raises(Unavailable, match="'a' cannot be served: the source is away"):
            async with adapters.using("a"):
                raise AssertionError("away")
        async with adapters.using("b"):
            pass


async def test_an_adapter_that_could_not_be_fetched_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genaifactory_modelserver.adapters.set._BACKOFF", Backoff(0.01, 0.01))
    world.sources.away.add("a")
    async with world.opened("a") as adapters:
        world.sources.away.clear()
        async with asyncio.timeout(5):
            while True:
                try:
                    async with adapters.using("a"):
                        break
                except Unavailable:
                    await asyncio.sleep(0.01)


async def test_a_new_list_in_factory_yaml_is_followed(world: World) -> None:
    async with world.opened("a", "b") as adapters:
        adapters.declare([made("b"), made("c")])
        await turn()
        assert sorted(adapters.names()) == ["b", "c"]
        assert world.engine.names() == ["b"]
        async with adapters.using("c"):
            assert world.engine.names() == ["b", "c"]


async def test_what_factory_yaml_declares_is_changed_there_alone(world: World) -> None:
    async with world.opened("a") as adapters:
        for work in (adapters.load(made("a")), adapters.unload("a")):
            with pytest.raises(Conflict, match=r"declared in factory\.yaml"):
                await work


async def test_more_than_may_be_known_are_refused(world: World) -> None:
    async with world.opened("a", max_known=2) as adapters:
        await adapters.load(made("b"))
        with pytest.raises(TooLarge, match="2 adapters are known"):
            await adapters.load(made("c"))
        await adapters.load(made("b"))  # known already


@pytest.mark.allow_blocking  # writes a file
async def test_a_damaged_register_is_not_followed_and_is_mended_by_the_next_change(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.register.write_text('[{"name": "a"')
    async with world.opened() as adapters:
        assert list(adapters.names()) == []
        assert "damaged" in caplog.text
        await adapters.load(made("b"))
    async with world.opened(engine=Engine()) as adapters:
        assert list(adapters.names()) == ["b"]


async def test_under_random_use_no_bound_is_broken_and_every_request_gets_its_own_version(world: World) -> None:
    rng = random.Random(4)
    async with world.opened(max_loaded=3) as adapters:
        for name in "abcdef":
            await adapters.load(made(name))

        async def use(name: str, turns: int) -> None:
            async with adapters.using(name) as loaded:
                assert loaded.name == name
                for _ in range(turns):
                    assert world.engine.inside[loaded.id] is loaded
                    await asyncio.sleep(0)

        async def change(name: str) -> None:
            if rng.random() < 0.5:
                world.sources.versions[name] = world.sources.versions.get(name, 0) + 1
            await adapters.load(made(name))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(300):
                name = rng.choice("abcdef")
                task = group.create_task(use(name, rng.randrange(8)) if rng.random() < 0.9 else change(name))
                if rng.random() < 0.1:
                    task.cancel()
                await asyncio.sleep(0)
        await turn()
        assert world.engine.most <= 3
        assert not any(loaded.users for loaded in world.engine.inside.values())
