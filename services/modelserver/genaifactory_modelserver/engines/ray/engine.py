"""An engine whose work is done by replicas on a Ray cluster, scaled with the load.

The gRPC server stays ours, with its checks, identity, bounds, metrics and errors; only what an engine does goes
through Ray Serve, to replicas that run the same engine class (`ray.replica`). On a cluster that RAY_ADDRESS names, the
replicas outlive this server: several servers share them, and a new server need not load the weights again. A change of
the entry replaces them one by one; the last server to start decides. Without an address a cluster is started on this
machine, and ends with the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import re
import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from genaifactory_common import channels, specs
from genaifactory_common.engine_specs import AnyEngine, Ray, Vllm
from genaifactory_common.errors import (
    Conflict,
    FactoryError,
    InvalidArgument,
    Unavailable,
)
from genaifactory_modelserver.engines.protocol import Embeddings, Generation, Model, Step
from genaifactory_modelserver.engines.ray import cluster, errors
from genaifactory_modelserver.engines.ray.errors import ReplicaLost
from genaifactory_modelserver.settings import Settings

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

# Of those that a request may be given to, as long as none has answered. More would let a request that kills its engine
# kill them all.
_REPLICAS_TRIED = 2
_WATCH_SECONDS = 1.0
_WATCH_TIMEOUT_SECONDS = 10.0
# Ray's own parts come back within it, when they come back at all.
_LOST_AFTER_SECONDS = 60.0
_HEALTH_CHECK_SECONDS = 2.0
_HEALTH_CHECK_TIMEOUT_SECONDS = 30.0
# Calls of a replica's other methods, for which there is a place when all places for requests are taken.
_CONTROL_CALLS = 8
_RETRY_AFTER_SECONDS = 1.0


def make(entry: AnyEngine, settings: Settings, source: specs.Source) -> RayEngine:
    """The engine of an entry that has `ray`."""
    holds = isinstance(entry, Vllm) and entry.adapters is not None
    return (RayAdapterEngine if holds else RayEngine)(entry, settings, source)


class RayEngine:
    """Forwards to the replicas of one entry of factory.yaml."""

    def __init__(self, entry: AnyEngine, settings: Settings, source: specs.Source) -> None:
        """source: whose declared adapters the replicas follow."""
        assert entry.ray is not None
        self.name: str = entry.type
        self.activity = "It is being loaded."
        self._entry = entry
        self._ray: Ray = entry.ray
        # A replica does not work in the folder that this server works in.
        self._settings = settings.model_copy(update={"data_dir": settings.data_dir.resolve()})
        self._source = source
        self._engines = source.current.engines
        self._application = _application(entry)
        self._bases = {entry.model} if isinstance(entry, Vllm) else set(entry.names())
        self._models = {name: Model(name, base_model=_base(entry, name)) for name in entry.names()}
        self._changes = 0
        """Adapters that were loaded or unloaded through this server."""
        self._joined = False
        self._handle: Any = None
        self._running = 0
        self._lost = False
        self._redeploying: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connects to the cluster, or starts one, and waits for the first replica. Raises FactoryError."""
        self.activity = "The server is joining the Ray cluster."
        try:
            await self._in_thread(self._join)
        except ImportError:
            raise InvalidArgument(
                "Ray is not installed; install genaifactory-modelserver[ray], or leave the engine's 'ray' away.",
                field="engines[].ray",
            ) from None
        finally:
            cluster.take_signals_back()
        await self._in_thread(self._deploy)
        self._source.follow(self._follow)
        await self._until_running()
        self._handle = await self._in_thread(cluster.handle, self._application)
        await self._refresh()
        self._watching = asyncio.create_task(self._watch(), name=f"{self._application}-watch")

    async def close(self) -> None:
        """Leaves the cluster; ends it if it was started for this server."""
        for task in (self._watching, self._redeploying):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        await self._in_thread(self._leave)
        cluster.take_signals_back()

    def ready(self) -> bool:
        """Whether a replica runs."""
        return self._running > 0

    def alive(self) -> bool:
        """False when the cluster or the replicas' application has gone; a new start makes them again."""
        return not self._lost

    def models(self) -> Sequence[Model]:
        """What the replicas serve."""
        return tuple(self._models.values())

    def serves(self, name: str) -> bool:
        """Whether `name` is a model or adapter of the replicas."""
        return name in self._models

    async def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates on a replica; on another one when the first is lost before its first output."""
        for tried in range(1, _REPLICAS_TRIED + 1):
            began = False
            try:
                async with aclosing(self._stream(request)) as stream:
                    async for steps in stream:
                        began = True
                        for step in steps:
                            yield step
                return
            except ReplicaLost as lost:
                logger.warning("a replica of '%s' was lost: %s", request.model, lost)
                if began or tried == _REPLICAS_TRIED:
                    raise Unavailable(
                        f"The replica that answered for '{request.model}' is gone; another one can answer.",
                        retry_after_seconds=_RETRY_AFTER_SECONDS,
                    ) from None

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds on a replica; on another one when the first is lost."""
        for _ in range(_REPLICAS_TRIED):
            with suppress(ReplicaLost):
                embeddings: Embeddings = await self._call("embed", model, list(texts), adapter=self._adapter(model))
                return embeddings
        raise Unavailable(f"No replica of '{model}' can be reached.", retry_after_seconds=_RETRY_AFTER_SECONDS)

    async def _in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(cluster.CLUSTER.thread, work, *arguments)

    def _join(self) -> None:
        cluster.CLUSTER.join(self._settings.ray_address)
        self._joined = True

    def _leave(self) -> None:
        if self._joined:
            self._joined = False
            if self._handle is not None:
                self._handle.shutdown()
            if self._settings.ray_address is None:
                cluster.delete(self._application)
            cluster.CLUSTER.leave()

    def _adapter(self, model: str) -> str:
        return "" if model in self._bases else model

    async def _stream(self, request: Generation) -> AsyncGenerator[tuple[Step, ...], None]:
        """What a replica sends. Raises FactoryError, ReplicaLost."""
        handle = self._handle.options(
            method_name="generate", stream=True, multiplexed_model_id=self._adapter(request.model)
        )
        response = handle.remote(request)
        try:
            while True:
                try:
                    async with asyncio.timeout(channels.remaining_seconds()):
                        steps = await anext(response)
                except StopAsyncIteration:
                    return
                except BaseException as error:
                    raise errors.translated(error) from None
                yield steps
        finally:
            response.cancel()  # of what has ended it is nothing

    async def _call(self, method: str, *arguments: Any, adapter: str = "") -> Any:
        """Calls a method of a replica. Raises FactoryError, ReplicaLost."""
        response = self._handle.options(method_name=method, multiplexed_model_id=adapter).remote(*arguments)
        try:
            async with asyncio.timeout(channels.remaining_seconds()):
                return await response
        except BaseException as error:
            response.cancel()
            raise errors.translated(error) from None

    async def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of all replicas; those that go away do not count. Raises FactoryError, ReplicaLost."""
        try:
            async with asyncio.timeout(channels.remaining_seconds()):
                results = await self._handle.broadcast(method, *arguments).results_async(return_exceptions=True)
        except BaseException as error:
            raise errors.translated(error) from None
        failures = [errors.translated(result) for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if not isinstance(failure, ReplicaLost):
                raise failure
        if len(failures) == len(results):
            raise ReplicaLost("no replica runs")
        return [result for result in results if not isinstance(result, BaseException)]

    async def _refresh(self) -> None:
        """Takes up which adapters the replicas serve."""
        changes = self._changes
        models = {model.name: model for found in await self._broadcast("models") for model in found}
        if models and changes == self._changes:  # else their answer may be older than the state here
            self._models = models

    async def _until_running(self) -> None:
        told = ""
        while True:
            status, message, running = await self._in_thread(cluster.status, self._application)
            if status == "RUNNING":
                self._running = running
                return
            if status == "DEPLOY_FAILED":
                raise errors.failure(message)
            self.activity = message or "Its replicas are being started."
            if message and message != told:
                told = message
                logger.info("the replicas of '%s' are not running yet: %s", self._application, message)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _watch(self) -> None:
        """Keeps up with how many replicas run and what they serve."""
        loop = asyncio.get_running_loop()
        seen = loop.time()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            looking = asyncio.create_task(self._in_thread(cluster.status, self._application))
            await asyncio.wait((looking,), timeout=_WATCH_TIMEOUT_SECONDS)
            if not looking.done():
                self._running = 0
                await asyncio.wait((looking,), timeout=_LOST_AFTER_SECONDS)
            if not looking.done() or looking.exception() is not None or not looking.result()[0]:
                self._running = 0
                self._lost = loop.time() - seen > _LOST_AFTER_SECONDS
                continue
            _, _, self._running = looking.result()
            seen, self._lost = loop.time(), False
            # Under full load it answers late; the last state is good enough until then.
            with suppress(TimeoutError, FactoryError, ReplicaLost):
                async with asyncio.timeout(_WATCH_TIMEOUT_SECONDS):
                    await self._refresh()

    def _follow(self, change: specs.Change) -> None:
        """Hands a new list of declared adapters to the replicas, without a new start of theirs."""
        for entry in change.after.engines:
            if entry.names()[0] == self._entry.names()[0] and _declared(entry) != _declared(self._entry):
                adapters = getattr(entry, "adapters", None)
                changed = self._entry.model_copy(update={"adapters": adapters})
                self._engines = tuple(changed if each is self._entry else each for each in self._engines)
                self._entry = changed
                self._redeploying = asyncio.create_task(self._in_thread(self._deploy))

    def _deploy(self) -> None:
        """Deploys the application as the entry declares it; replicas that match already go on."""
        from ray import serve

        from genaifactory_modelserver.engines.ray.replica import Replica

        status, _, _ = cluster.status(self._application)
        if status == "DEPLOY_FAILED":
            serve.delete(self._application)  # what has failed is not tried again otherwise
        scale = self._ray
        averaged = min(max(scale.upscale_delay_seconds, 2.0), 30.0)
        options = {
            "ray_actor_options": {
                "num_cpus": scale.num_cpus,
                "num_gpus": scale.num_gpus,
                "resources": scale.resources,
            },
            "max_ongoing_requests": self._entry.max_running + _CONTROL_CALLS,
            "autoscaling_config": {
                "min_replicas": scale.min_replicas,
                "max_replicas": scale.max_replicas,
                "target_ongoing_requests": scale.target_ongoing_requests,
                "upscale_delay_s": scale.upscale_delay_seconds,
                "downscale_delay_s": scale.downscale_delay_seconds,
                "look_back_period_s": averaged,
                "metrics_interval_s": averaged / 3,
            },
            "graceful_shutdown_timeout_s": scale.drain_seconds,
            "graceful_shutdown_wait_loop_s": min(1.0, scale.drain_seconds),
            "health_check_period_s": _HEALTH_CHECK_SECONDS,
            "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_SECONDS,
            "max_constructor_retry_count": 1,  # the engine tries again what is worth it
            "user_config": {"adapters": [adapter.model_dump() for adapter in _declared(self._entry)]},
        }
        if scale.bundles:
            options |= {
                "placement_group_bundles": [dict(bundle) for bundle in scale.bundles],
                "placement_group_strategy": scale.strategy,
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metrics_interval_s, which no other option sets for one deployment
            # Without a version of ours every deployment would count as a new one, and replace the replicas.
            deployment = serve.deployment(Replica, name=cluster.DEPLOYMENT, **options).options(
                version=_version(self._entry, self._settings), _internal=True
            )
        application = deployment.bind(self._engines, self._engines.index(self._entry), self._settings)
        target = serve.RunTarget(application, name=self._application, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)


class RayAdapterEngine(RayEngine):
    """Replicas that load adapters."""

    async def load_adapter(self, name: str, source_uri: str, sha256: str) -> Model:
        """Loads it on one replica, which verifies and registers it, then on the others."""
        try:
            model: Model = await self._call("load_adapter", name, source_uri, sha256)
            if not all(await self._broadcast("knows", name)):
                await self._broadcast("unload_adapter", name)
                raise Conflict(
                    f"The replicas of '{model.base_model}' share no data folder, so not all of them can serve the "
                    "adapter: let GENAIFACTORY_DATA_DIR be a shared volume, or declare the adapter in factory.yaml.",
                    field="name",
                )
        except ReplicaLost:
            raise Unavailable(
                f"A replica went away while it loaded the adapter '{name}'.", retry_after_seconds=_RETRY_AFTER_SECONDS
            ) from None
        self._changes += 1
        self._models[name] = model
        return model

    async def knows(self, name: str) -> bool:
        """Asks a replica."""
        try:
            known: bool = await self._call("knows", name)
        except ReplicaLost:
            return False
        if known:
            await self._refresh()
        return known

    async def unload_adapter(self, name: str) -> None:
        """Unloads it on every replica."""
        try:
            await self._broadcast("unload_adapter", name)
        except ReplicaLost:
            raise Unavailable(
                f"A replica went away while it unloaded the adapter '{name}'.", retry_after_seconds=_RETRY_AFTER_SECONDS
            ) from None
        self._changes += 1
        self._models.pop(name, None)


def _application(entry: AnyEngine) -> str:
    name = entry.names()[0]
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", name)  # it becomes part of file names
    if slug != name:
        slug += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"genaifactory-{slug}"


def _base(entry: AnyEngine, name: str) -> str:
    return entry.model if isinstance(entry, Vllm) and name != entry.model else ""


def _declared(entry: AnyEngine) -> Sequence[Any]:
    return entry.adapters.serve if isinstance(entry, Vllm) and entry.adapters is not None else ()


def _undeclared(entry: AnyEngine) -> AnyEngine:
    """The entry without what can change while replicas run: declared adapters and how many replicas there are."""
    changed: dict[str, Any] = {"ray": None}
    if isinstance(entry, Vllm) and entry.adapters is not None:
        changed["adapters"] = entry.adapters.model_copy(update={"serve": ()})
    return entry.model_copy(update=changed)


def _version(entry: AnyEngine, settings: Settings) -> str:
    """Changes when running replicas must be replaced."""
    parts = (
        _undeclared(entry).model_dump_json(),
        str(settings.data_dir),
        str(settings.hub_endpoint),
        importlib.metadata.version("genaifactory-modelserver"),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
