"""The replica of an engine on Ray Serve: the engine class of the plain server, in a process of Ray's.

Ray Serve makes replicas, calls `reconfigure` before the first request and whenever factory.yaml's adapters change,
`check_health` every few seconds, and `__del__` once a replica that is taken away has finished its requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve

from genaifactory_common import specs
from genaifactory_common.engine_specs import Adapter, AnyEngine, Vllm
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_modelserver.engines.protocol import (
    AdapterHolder,
    Embedder,
    Embeddings,
    Engine,
    Generation,
    Generator,
    Model,
    Step,
)
from genaifactory_modelserver.settings import Settings

logger = logging.getLogger(__name__)

# A message through Ray costs the model server a third of a millisecond and the replica half of that, whatever is in
# it. So a replica sends so many a second at most; with more streams than that allows, steps travel together.
_MESSAGES_PER_SECOND = 1000
_MAX_PAUSE_SECONDS = 0.1


class Replica:
    """Holds one engine. The model server calls its methods through a handle (`ray.engine`)."""

    def __init__(self, engines: Sequence[AnyEngine], number: int, settings: Settings) -> None:
        """engines: factory.yaml's. number: of the one to hold; its declared adapters come with `reconfigure`."""
        self._engines = tuple(engines)
        self._number = number
        self._settings = settings
        self._source: specs.Source | None = None
        self._engine: Engine | None = None
        self._streams = 0
        entry = self._engines[number]
        places = entry.adapters.max_loaded if isinstance(entry, Vllm) and entry.adapters is not None else 1
        # Tells Ray's router which adapters are here. The engine drops the least recently used one as well, in step.
        self._hold = serve.multiplexed(max_num_models_per_replica=places)(_name)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Opens the engine, or passes it the adapters that factory.yaml declares now. Raises FactoryError."""
        document = self._document([Adapter(**adapter) for adapter in config["adapters"]])
        if self._source is not None:
            self._source.replace(document)
            return
        from genaifactory_modelserver.engines.factory import make_engine

        self._source = specs.Source(document)
        engine = make_engine(document.engines[self._number], self._settings, self._source)
        try:
            await engine.open()
        except BaseException:
            await engine.close()
            raise
        self._engine = engine

    async def __del__(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    def check_health(self) -> None:
        """Ends the process when the engine has died; Ray Serve makes another replica."""
        self._opened()

    async def models(self) -> list[Model]:
        """What the engine serves."""
        return list(self._opened().models())

    async def generate(self, request: Generation) -> AsyncGenerator[tuple[Step, ...], None]:
        """Generates; steps that are ready together come together. Raises FactoryError."""
        engine = self._opened()
        if not isinstance(engine, Generator):
            raise InvalidArgument(f"The model '{request.model}' embeds; it does not generate.", field="model")
        await self._find(engine, request.model)
        self._streams += 1
        try:
            async with aclosing(self._together(engine.generate(request))) as together:
                async for steps in together:
                    yield steps
        finally:
            self._streams -= 1

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds. Raises FactoryError."""
        engine = self._opened()
        if not isinstance(engine, Embedder):
            raise InvalidArgument(f"The model '{model}' generates; it does not embed.", field="model")
        await self._find(engine, model)
        return await engine.embed(model, texts)

    async def load_adapter(self, name: str, source_uri: str, sha256: str) -> Model:
        """Loads. Raises FactoryError."""
        return await self._holder().load_adapter(name, source_uri, sha256)

    async def unload_adapter(self, name: str) -> None:
        """Unloads. Raises FactoryError."""
        await self._holder().unload_adapter(name)

    async def knows(self, name: str) -> bool:
        """Whether the adapter is served here, now that what other replicas have loaded was looked up."""
        return await self._holder().knows(name)

    def _opened(self) -> Engine:
        if self._engine is None:
            raise Unavailable("The replica is not open.", retry_after_seconds=1.0)
        if not self._engine.alive():
            # Told by its health check alone, Ray's router would for seconds send requests here, the more the faster
            # they fail.
            logger.error("the engine '%s' has died, and the replica ends with it", self._engine.name)
            os._exit(1)
        return self._engine

    def _document(self, declared: Sequence[Adapter]) -> specs.Factory:
        """The part of factory.yaml that engines read."""
        engines = list(self._engines)
        entry = engines[self._number]
        if isinstance(entry, Vllm) and entry.adapters is not None:
            adapters = entry.adapters.model_copy(update={"serve": tuple(declared)})
            engines[self._number] = entry.model_copy(update={"adapters": adapters})
        return specs.Factory.model_construct(engines=tuple(engines))  # type: ignore[call-arg]

    def _holder(self) -> AdapterHolder:
        engine = self._opened()
        assert isinstance(engine, AdapterHolder)  # the model server calls this for no other
        return engine

    async def _find(self, engine: Engine, model: str) -> None:
        """Loads an adapter that another replica has loaded, and updates what Ray's router has for this one."""
        if not engine.serves(model) and not (isinstance(engine, AdapterHolder) and await engine.knows(model)):
            # Not NotFound: the model server has the name, so this replica is behind, or ahead, by a moment.
            raise Unavailable(f"The adapter '{model}' is not loaded.", retry_after_seconds=1.0)
        if serve.get_multiplexed_model_id():
            await self._hold(model)

    async def _together(self, steps: AsyncGenerator[Step, None]) -> AsyncGenerator[tuple[Step, ...], None]:
        queue: asyncio.Queue[Step | None] = asyncio.Queue()

        async def take() -> None:
            async with aclosing(steps):
                async for step in steps:
                    queue.put_nowait(step)

        taker = asyncio.create_task(take())
        taker.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            last = False
            while not last:
                ready = [await queue.get()]
                while not queue.empty():
                    ready.append(queue.get_nowait())
                last = ready[-1] is None
                if joined := _joined(step for step in ready if step is not None):
                    yield joined
                    if joined[-1].usage is None:
                        await asyncio.sleep(min(self._streams / _MESSAGES_PER_SECOND, _MAX_PAUSE_SECONDS))
            await taker  # raises what ended it
        finally:
            taker.cancel()
            await asyncio.wait((taker,))


async def _name(name: str) -> str:
    return name


def _joined(steps: Iterable[Step]) -> tuple[Step, ...]:
    """One step for each choice; the choice that spoke last comes last, and so the usage."""
    joined: dict[int, Step] = {}
    for step in steps:
        before = joined.pop(step.choice, None)
        if before is not None:
            step = Step(
                before.delta + step.delta,
                step.choice,
                before.tool_calls + step.tool_calls,
                before.logprobs + step.logprobs,
                step.finish_reason or before.finish_reason,
                step.usage,
            )
        joined[step.choice] = step
    return tuple(joined.values())
