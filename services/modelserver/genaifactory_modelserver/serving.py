"""Serves models: finds the engine of a request, waits for a place there, counts and traces what it does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from opentelemetry.trace import Span, SpanKind

from genaifactory_common import channels
from genaifactory_common.engine_specs import Adapter
from genaifactory_common.errors import (
    Conflict,
    FactoryError,
    Internal,
    InvalidArgument,
    NotFound,
    Reason,
    Unavailable,
    Unimplemented,
)
from genaifactory_common.telemetry import Telemetry, mark_failed
from genaifactory_modelserver import metrics
from genaifactory_modelserver.engines.protocol import (
    AdapterHolder,
    Embedder,
    Embeddings,
    Engine,
    Generation,
    Generator,
    Model,
    Priority,
    Sleeper,
    Step,
    Usage,
)
from genaifactory_modelserver.slots import Slots

logger = logging.getLogger(__name__)

# Names in an error; with hundreds of adapters the rest is in ListModels.
_LISTED_NAMES = 20
# A deadline and the client's hanging up at that deadline come together; whoever was first, the deadline was it.
_DEADLINE_TOLERANCE_SECONDS = 0.05


class State(StrEnum):
    """Whether a model can answer."""

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as it is listed."""

    model: Model
    engine: str
    state: State
    message: str = ""
    """Why it cannot answer; empty when it is ready."""


@dataclass(slots=True)
class _Served:
    engine: Engine
    slots: Slots
    generator: Generator | None
    embedder: Embedder | None
    adapters: AdapterHolder | None
    sleeper: Sleeper | None
    opened: bool = False
    sleeping: bool = False
    failure: FactoryError | None = None

    def ready(self) -> bool:
        return self.status()[0] is State.READY

    def status(self) -> tuple[State, str]:
        if self.failure is not None:
            return State.FAILED, self.failure.message
        if not self.opened:
            return State.LOADING, self.engine.activity
        if not self.engine.alive():
            return State.FAILED, f"The engine '{self.engine.name}' has died."
        if self.sleeping:
            return State.SLEEPING, "It sleeps until it is woken."
        if not self.engine.ready():
            return State.LOADING, "It is not ready."
        return State.READY, ""


class Serving:
    """The engines of this server, each with its own bound."""

    def __init__(self, engines: Sequence[tuple[Engine, Slots]], telemetry: Telemetry) -> None:
        """engines: each with the places it has. Their models' names differ."""
        # What an engine is able to does not change; asking a protocol costs too much to do it for every request.
        self._engines = tuple(
            _Served(
                engine,
                slots,
                generator=engine if isinstance(engine, Generator) else None,
                embedder=engine if isinstance(engine, Embedder) else None,
                adapters=engine if isinstance(engine, AdapterHolder) else None,
                sleeper=engine if isinstance(engine, Sleeper) else None,
            )
            for engine, slots in engines
        )
        self._telemetry = telemetry

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Opens all engines, the slowest sets the time; closes them when the block is left.

        One that cannot open does not stop the others: its models answer with the reason. Raises the first one's
        FactoryError when none can.
        """
        async with AsyncExitStack() as stack:
            async with asyncio.TaskGroup() as group:
                for served in self._engines:
                    metrics.ENGINE_READY.labels(served.engine.name).set_function(served.ready)
                    stack.push_async_callback(served.engine.close)
                    group.create_task(_open(served))
            failures = [served.failure for served in self._engines if served.failure is not None]
            if len(failures) == len(self._engines):
                raise failures[0]
            yield

    def ready(self) -> bool:
        """Whether every engine can serve."""
        return all(served.ready() for served in self._engines)

    def alive(self) -> bool:
        """Whether no engine has died or failed to open; a new start may help one that has."""
        return all(served.status()[0] is not State.FAILED for served in self._engines)

    def models(self) -> list[Listed]:
        """What is served, by which engine, and whether it can answer now; sorted by name."""
        found = []
        for served in self._engines:
            state, message = served.status()
            found += [Listed(model, served.engine.name, state, message) for model in served.engine.models()]
        return sorted(found, key=lambda listed: listed.model.name)

    async def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates; closing the iterator stops the engine. Raises FactoryError."""
        arrived = time.perf_counter()
        served = await self._find(request.model)
        if served.generator is None:
            raise InvalidArgument(f"The model '{request.model}' embeds; it does not generate.", field="model")
        steps = served.generator.generate(request)  # refuses before the request occupies a place
        operation = "chat" if request.prompt is None else "text_completion"
        with self._traced(operation, served.engine, request.model) as span:
            _describe(span, request)
            async with served.slots.place(request.priority, request.tenant), aclosing(steps):
                first = True
                async for step in steps:
                    if first:
                        metrics.TIME_TO_FIRST_TOKEN.labels(request.model).observe(time.perf_counter() - arrived)
                        first = False
                    if step.finish_reason is not None and step.choice == 0:
                        metrics.FINISHED.labels(request.model, step.finish_reason).inc()
                        span.set_attribute("gen_ai.response.finish_reasons", (step.finish_reason.value,))
                    if step.usage is not None:
                        _count(span, request.model, step.usage)
                    yield step

    async def embed(self, model: str, texts: Sequence[str], *, tenant: str) -> Embeddings:
        """Embeds. Raises FactoryError."""
        served = await self._find(model)
        if served.embedder is None:
            raise InvalidArgument(f"The model '{model}' generates; it does not embed.", field="model")
        with self._traced("embeddings", served.engine, model) as span:
            async with served.slots.place(Priority.INTERACTIVE, tenant):
                embeddings = await served.embedder.embed(model, texts)
            span.set_attribute("gen_ai.embeddings.dimension.count", embeddings.vectors.shape[1])
            _count(span, model, Usage(embeddings.prompt_tokens, 0))
            return embeddings

    async def load_adapter(self, adapter: Adapter, *, base_model: str) -> Listed:
        """Loads an adapter. base_model: empty where one engine alone loads adapters. Raises FactoryError."""
        owner = next((served for served in self._engines if served.engine.serves(adapter.name)), None)
        holder = self._holder(base_model)
        if owner is not None and (owner.adapters is not holder or not _is_adapter(owner.engine, adapter.name)):
            raise Conflict(f"The name '{adapter.name}' belongs to another model of this server.", field="name")
        model = await holder.load_adapter(adapter.name, adapter.source, adapter.sha256)
        return Listed(model, holder.name, State.READY)

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter once the requests that use it are finished; unknown ones are no error."""
        for served in self._engines:
            if served.engine.serves(name) and not _is_adapter(served.engine, name):
                raise InvalidArgument(f"'{name}' is a model of this server, not an adapter.", field="name")
        for holder in self._holders():
            assert holder.adapters is not None
            await holder.adapters.unload_adapter(name)

    async def sleep(self, model: str) -> None:
        """Puts the engine of a model to sleep. Raises Unimplemented where it cannot."""
        served, sleeper = self._sleeper(model)
        if not served.sleeping:
            served.sleeping = True
            try:
                await sleeper.sleep()
            except BaseException:
                served.sleeping = False
                raise

    async def wake(self, model: str) -> None:
        """Wakes the engine of a model. Raises Unimplemented where it cannot."""
        served, sleeper = self._sleeper(model)
        await sleeper.wake()
        served.sleeping = False

    def _holder(self, base_model: str) -> AdapterHolder:
        holders = self._holders()
        named = [served for served in holders if not base_model or served.engine.serves(base_model)]
        if len(named) != 1:
            bases = ", ".join(
                model.name for served in holders for model in served.engine.models() if not model.base_model
            )
            raise InvalidArgument(
                f"Name the adapter's base model; those that take adapters: {bases}.", field="base_model"
            )
        self._require_ready(named[0], base_model or named[0].engine.name)
        assert named[0].adapters is not None
        return named[0].adapters

    def _holders(self) -> list[_Served]:
        holders = [served for served in self._engines if served.adapters is not None]
        if not holders:
            names = ", ".join(sorted({served.engine.name for served in self._engines}))
            raise Unimplemented(f"Adapters need an engine that can hold them; this server has: {names}.")
        return holders

    def _sleeper(self, model: str) -> tuple[_Served, Sleeper]:
        served = next((served for served in self._engines if served.engine.serves(model)), None)
        if served is None:
            raise self._unknown(model)
        if served.sleeper is None:
            raise Unimplemented(f"The engine '{served.engine.name}' cannot sleep.")
        if served.failure is not None or not served.opened:
            self._require_ready(served, model)
        return served, served.sleeper

    async def _find(self, model: str) -> _Served:
        for served in self._engines:
            if served.engine.serves(model):
                self._require_ready(served, model)
                return served
        for served in self._engines:
            if served.adapters is not None and served.opened and await served.adapters.knows(model):
                self._require_ready(served, model)
                return served
        raise self._unknown(model)

    def _require_ready(self, served: _Served, model: str) -> None:
        state, message = served.status()
        if state is not State.READY:
            raise Unavailable(f"The model '{model}' cannot answer: {message}", retry_after_seconds=1.0)

    def _unknown(self, model: str) -> NotFound:
        known = ", ".join(each.model.name for each in self.models()[:_LISTED_NAMES])
        return NotFound(
            f"There is no model '{model[:128]}'; this server has: {known}.",
            field="model",
            reason=Reason.MODEL_NOT_FOUND,
        )

    @contextmanager
    def _traced(self, operation: str, engine: Engine, model: str) -> Iterator[Span]:
        """A span of the GenAI conventions around one request; counts it when it is cut short."""
        # Not made the current span: a generator may be closed from another task's context.
        span = self._telemetry.tracer.start_span(
            f"{operation} {model}",
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": f"genaifactory.{engine.name}",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
            },
        )
        try:
            yield span
        except (asyncio.CancelledError, GeneratorExit) as error:
            remaining = channels.remaining_seconds()
            expired = remaining is not None and remaining < _DEADLINE_TOLERANCE_SECONDS
            metrics.CANCELLED.labels(model, "deadline" if expired else "client").inc()
            mark_failed(span, error)
            raise
        except BaseException as error:
            mark_failed(span, error)
            raise
        finally:
            span.end()


def _describe(span: Span, request: Generation) -> None:
    if not span.is_recording():
        return
    sampling = request.sampling
    attributes = {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
        "gen_ai.output.type": "json" if request.output_format.kind.startswith("json") else "text",
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _count(span: Span, model: str, usage: Usage) -> None:
    metrics.PROMPT_TOKENS.labels(model).inc(usage.prompt_tokens)
    metrics.COMPLETION_TOKENS.labels(model).inc(usage.completion_tokens)
    span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)


async def _open(served: _Served) -> None:
    try:
        await served.engine.open()
    except FactoryError as error:
        served.failure = error
        logger.error("the engine '%s' cannot start: %s", served.engine.name, error.message)
    except Exception:
        served.failure = Internal(f"The engine '{served.engine.name}' could not start; the log says why.")
        logger.exception("the engine '%s' cannot start", served.engine.name)
    else:
        served.opened = True


def _is_adapter(engine: Engine, name: str) -> bool:
    return any(model.name == name and model.base_model for model in engine.models())
