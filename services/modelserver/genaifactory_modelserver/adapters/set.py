"""The adapters of one base model: which are known, which are in the engine, and who uses them.

Known are those that factory.yaml declares and those that were loaded through LoadAdapter; the latter are written down
in a register that replicas with the same data folder share, so that they are served everywhere and after a restart. In
the engine are as many as fit; of more, the least recently used is unloaded. One that is in use never is: a new
version of it is served beside it until the requests of the old one are finished.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from genaifactory_common import files
from genaifactory_common.backoff import Backoff
from genaifactory_common.engine_specs import Adapter, Adapters
from genaifactory_common.errors import Conflict, FactoryError, TooLarge, Unavailable
from genaifactory_common.file_locks import file_lock
from genaifactory_modelserver import metrics
from genaifactory_modelserver.weights import disk

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 30.0
_BACKOFF = Backoff(first_seconds=2.0, longest_seconds=60.0)


@dataclass(frozen=True, slots=True)
class Files:
    """A verified adapter on this machine's disk."""

    folder: Path
    sha256: str
    """Of its weights, hex."""

    @property
    def key(self) -> str:
        """Of everything in it: two adapters with one key are the same."""
        return self.folder.name


class Registered(Adapter):
    """An adapter as it is written down."""

    declared: bool = False
    """Whether factory.yaml declares it; then it stands here only to be found when its source is away."""


_REGISTERED = TypeAdapter(tuple[Registered, ...])


@dataclass(eq=False, slots=True)
class Loaded:
    """An adapter in the engine, or on its way there."""

    name: str
    files: Files
    id: int
    """Of this load; never used again."""
    loading: asyncio.Task[None] | None = None
    inside: bool = False
    users: int = 0
    retired: bool = False
    """To be unloaded as soon as no request uses it."""


class Holder(Protocol):
    """Where adapters are put: the engine itself."""

    async def put_in(self, adapter: Loaded) -> None:
        """Loads it. Raises FactoryError; then it is not in."""

    async def take_out(self, adapter: Loaded) -> None:
        """Forgets it; nobody uses it any more."""


@dataclass(slots=True)
class _Known:
    adapter: Adapter
    declared: bool
    files: Files | None = None
    failure: FactoryError | None = None
    """Why it cannot be fetched; it is tried again."""
    fetching: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Register:
    """What was loaded, on disk."""

    path: Path
    seen: tuple[int, int, int] | None = None

    def read(self) -> tuple[Registered, ...] | None:
        """What is written down; None: nothing has changed since the last look."""
        stamp = files.fingerprint(self.path)
        if stamp == self.seen:
            return None
        self.seen = stamp
        return self.content()

    def change(self, change: Callable[[dict[str, Registered]], None]) -> tuple[Registered, ...]:
        """Changes what is written down, one replica at a time. Raises Unavailable."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(self.path.with_suffix(".lock")).acquire(timeout=_LOCK_SECONDS):
                before = self.content()
                adapters = {adapter.name: adapter for adapter in before}
                change(adapters)
                after = tuple(adapters.values())
                if after != before:
                    files.write(self.path, _REGISTERED.dump_json(after, indent=1), mode=disk.MODE)
                self.seen = files.fingerprint(self.path)
                return after
        except OSError as error:
            raise Unavailable(f"The register of adapters cannot be written: {error.strerror or error}.") from None

    def content(self) -> tuple[Registered, ...]:
        """What is written down; nothing when it cannot be read."""
        try:
            return _REGISTERED.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return ()
        except ValidationError:
            logger.error("the register of adapters %s is damaged and is not followed", self.path)
            return ()


class AdapterSet:
    """The adapters of one base model. Belongs to one event loop."""

    def __init__(
        self,
        spec: Adapters,
        holder: Holder,
        fetch: Callable[[Adapter], Awaitable[Files]],
        register: Path,
        *,
        model: str,
    ) -> None:
        """fetch: gets and verifies an adapter; raises FactoryError. register: a JSON file that replicas may share."""
        self._spec = spec
        self._holder = holder
        self._fetch = fetch
        self._register = _Register(register)
        self._model = model
        self._known: dict[str, _Known] = {}
        self._arriving: Counter[str] = Counter()
        """Names that LoadAdapter works on."""
        self._loaded: OrderedDict[tuple[str, str], Loaded] = OrderedDict()
        """By name and key, the least recently used first."""
        self._retired: set[Loaded] = set()
        """No longer served, but still in the engine."""
        self._ids = itertools.count(1)
        self._room = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self, declared: Sequence[Adapter]) -> None:
        """Takes up what is declared and registered, and puts as many into the engine as fit.

        One that cannot be fetched is tried again in the background; the base model does not wait for it.
        """
        self.declare(declared)
        await self.refresh()
        await self._until(lambda: all(known.files or known.failure for known in self._known.values()))
        for name in list(self._known)[: self._spec.max_loaded]:
            with suppress(FactoryError):  # logged where it failed, and raised for requests of the adapter
                async with self.using(name):
                    pass

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def names(self) -> Iterable[str]:
        """Those that are served."""
        return self._known.keys()

    async def checksums(self) -> set[str]:
        """Of all weights that are meant, by this replica or another, or are in use."""
        in_engine = {each.files.sha256 for each in itertools.chain(self._loaded.values(), self._retired)}
        return in_engine | {each.sha256 for each in await asyncio.to_thread(self._register.content)}

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._arriving

    def declare(self, adapters: Sequence[Adapter]) -> None:
        """Takes factory.yaml's list, at the start and whenever it changes."""
        names = {adapter.name for adapter in adapters}
        for name in [name for name, known in self._known.items() if known.declared and name not in names]:
            self._forget(name)
        for adapter in adapters:
            self._know(adapter, declared=True)

    async def refresh(self) -> None:
        """Follows what other replicas have loaded and unloaded since the last look."""
        registered = await asyncio.to_thread(self._register.read)
        if registered is not None:
            self._follow(registered)

    async def load(self, adapter: Adapter) -> None:
        """Fetches, verifies and puts in, then writes it down. Raises FactoryError; then nothing has changed."""
        name = adapter.name
        known = self._known.get(name)
        if known is not None and known.declared:
            raise Conflict(f"The adapter '{name}' is declared in factory.yaml; change it there.", field="name")
        if known is None and len(self._known) >= self._spec.max_known:
            raise TooLarge(f"{len(self._known)} adapters are known, as many as may be; unload one first.", field="name")
        self._arriving[name] += 1
        try:
            files = await self._fetch(adapter)
            self._release(await self._acquire(name, files))  # raises when the engine refuses it
            pinned = Registered(name=name, source=adapter.source, sha256=files.sha256)

            def write(registered: dict[str, Registered]) -> None:
                registered[name] = pinned

            self._follow(await asyncio.to_thread(self._register.change, write), {name: files})
        finally:
            self._arriving[name] -= 1
            if not self._arriving[name]:
                del self._arriving[name]
            self._notify()

    async def unload(self, name: str) -> None:
        """Forgets it everywhere; returns when no request of this replica uses it any more. Raises Conflict."""
        known = self._known.get(name)
        if known is not None and known.declared:
            raise Conflict(f"The adapter '{name}' is declared in factory.yaml; remove it there.", field="name")

        def strike(registered: dict[str, Registered]) -> None:
            registered.pop(name, None)

        self._follow(await asyncio.to_thread(self._register.change, strike))
        await self._until(lambda: not any(each.name == name for each in self._retired))

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Loaded]:
        """The adapter, in the engine as long as the block runs; waits while it is loaded or no place is free.

        Raises FactoryError: why it cannot be loaded, Unavailable when it is not known any more.
        """
        loaded = await self._acquire(name, await self._files(name))
        try:
            yield loaded
        finally:
            self._release(loaded)

    async def _files(self, name: str) -> Files:
        def settled() -> bool:
            known = self._known.get(name)
            return known.files is not None or known.failure is not None if known else name not in self._arriving

        await self._until(settled)
        known = self._known.get(name)
        if known is None:
            raise Unavailable(f"The adapter '{name}' is not loaded.", retry_after_seconds=1.0)
        if known.files is None:
            assert known.failure is not None
            raise Unavailable(f"The adapter '{name}' cannot be served: {known.failure.message}")
        return known.files

    async def _acquire(self, name: str, files: Files) -> Loaded:
        """The adapter in the engine, with one user more."""
        key = (name, files.key)
        loaded = self._loaded.get(key)
        if loaded is None:
            async with self._room:  # who needs a place gets it in the order of arrival
                while (loaded := self._loaded.get(key)) is None and not await self._make_room():
                    await self._change()
                if loaded is None:
                    loaded = self._loaded[key] = Loaded(name, files, next(self._ids))
                    loaded.loading = self._spawn(self._put_in(key, loaded))
        self._loaded.move_to_end(key)
        loaded.users += 1
        try:
            if loaded.loading is not None:
                await asyncio.shield(loaded.loading)
        except BaseException:
            self._release(loaded)
            raise
        return loaded

    def _release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        if not loaded.users:
            if loaded.retired:
                self._spawn(self._take_out(loaded))
            self._notify()

    async def _make_room(self) -> bool:
        """Whether a place is free, if need be after unloading the least recently used idle adapter."""
        if len(self._loaded) + len(self._retired) < self._spec.max_loaded:
            return True
        for key, loaded in self._loaded.items():
            if not loaded.users and loaded.loading is None:
                del self._loaded[key]
                self._retired.add(loaded)
                await asyncio.shield(self._spawn(self._take_out(loaded)))
                metrics.ADAPTERS_EVICTED.labels(self._model).inc()
                return True
        return False

    async def _put_in(self, key: tuple[str, str], loaded: Loaded) -> None:
        started = time.perf_counter()
        try:
            await self._holder.put_in(loaded)
        except BaseException as error:
            if self._loaded.get(key) is loaded:
                del self._loaded[key]
            metrics.ADAPTER_LOADS.labels(self._model, "failed").inc()
            if isinstance(error, FactoryError):
                logger.error("the adapter '%s' cannot be loaded: %s", loaded.name, error.message)
            raise
        else:
            loaded.inside = True
            metrics.ADAPTER_LOADS.labels(self._model, "loaded").inc()
            metrics.ADAPTER_LOAD_SECONDS.labels(self._model).observe(time.perf_counter() - started)
            metrics.ADAPTERS_LOADED.labels(self._model).inc()
        finally:
            loaded.loading = None
            self._notify()

    async def _take_out(self, loaded: Loaded) -> None:
        try:
            if loaded.loading is not None:  # its requests were cancelled before it was loaded
                await asyncio.wait((loaded.loading,))
            if loaded.inside:
                loaded.inside = False
                metrics.ADAPTERS_LOADED.labels(self._model).dec()
                await self._holder.take_out(loaded)
        except FactoryError as error:
            logger.error("the adapter '%s' cannot be taken out: %s", loaded.name, error.message)
        finally:
            self._retired.discard(loaded)
            self._notify()

    def _follow(self, registered: Sequence[Registered], files: Mapping[str, Files] | None = None) -> None:
        """Makes what is known fit the register. files: of adapters that are fetched already."""
        loaded = {adapter.name: adapter for adapter in registered if not adapter.declared}
        for name in [name for name, known in self._known.items() if not known.declared and name not in loaded]:
            self._forget(name)
        for adapter in loaded.values():
            self._know(adapter, declared=False, files=(files or {}).get(adapter.name))

    def _know(self, adapter: Adapter, *, declared: bool, files: Files | None = None) -> None:
        known = self._known.get(adapter.name)
        if known is not None and (known.adapter == adapter or (known.declared and not declared)):
            return  # nothing new, or factory.yaml's, which goes before the register
        fresh = self._known[adapter.name] = _Known(adapter, declared, files)
        if files is None:
            fresh.fetching = self._spawn(self._keep_fetching(fresh))
        if known is not None and known.fetching is not None:
            known.fetching.cancel()
        self._retire(adapter.name, but=files.key if files is not None else "")

    async def _keep_fetching(self, known: _Known) -> None:
        failures = 0
        while known.files is None:
            try:
                known.files = await self._fetched(known)
            except FactoryError as error:
                if known.failure is None:
                    logger.error("the adapter '%s' cannot be served: %s", known.adapter.name, error.message)
                known.failure = error
                self._notify()
                failures += 1
                await asyncio.sleep(_BACKOFF.seconds(failures))
        self._notify()

    async def _fetched(self, known: _Known) -> Files:
        """Raises FactoryError."""
        adapter = known.adapter
        try:
            files = await self._fetch(adapter)
        except Unavailable as error:
            registered = await asyncio.to_thread(self._register.content)
            found = next((r for r in registered if (r.name, r.source) == (adapter.name, adapter.source)), None)
            if not known.declared or found is None or adapter.sha256 not in ("", found.sha256):
                raise
            logger.warning("%s What was fetched before is served as '%s'.", error.message, adapter.name)
            return await self._fetch(adapter.model_copy(update={"sha256": found.sha256}))
        if known.declared:
            entry = Registered(name=adapter.name, source=adapter.source, sha256=files.sha256, declared=True)

            def write(registered: dict[str, Registered]) -> None:
                registered[entry.name] = entry

            await asyncio.to_thread(self._register.change, write)
        return files

    def _forget(self, name: str) -> None:
        known = self._known.pop(name)
        if known.fetching is not None:
            known.fetching.cancel()
        self._retire(name, but="")
        self._notify()

    def _retire(self, name: str, *, but: str) -> None:
        """Takes out the versions of an adapter that are not meant any more, each once nobody uses it.

        but: key of the version that stays; empty: none does.
        """
        for key in [key for key in self._loaded if key[0] == name and key[1] != but]:
            loaded = self._loaded.pop(key)
            loaded.retired = True
            self._retired.add(loaded)
            if loaded.loading is None and not loaded.users:
                self._spawn(self._take_out(loaded))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._change()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, FactoryError):
            logger.error("unexpected error about an adapter", exc_info=error)
