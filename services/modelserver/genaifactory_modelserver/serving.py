"""Serves models: finds the engine of a request, waits for a place there, counts and traces what it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NoReturn

from opentelemetry.trace import Span, SpanKind

from genaifactory_common import channels
from genaifactory_common.errors import FactoryError, InvalidArgument, NotFound, Reason, Unavailable, Unimplemented
from genaifactory_common.telemetry import Telemetry, mark_failed
from genaifactory_modelserver import metrics
from genaifactory_modelserver.engine import (
    Embedder,
    Embeddings,
    Engine,
    Generation,
    Generator,
    Model,
    Priority,
    Step,
    Usage,
)
from genaifactory_modelserver.slots import Slots

# A deadline and the client's hanging up at that deadline come together; whoever was first, the deadline was it.
_DEADLINE_TOLERANCE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Served:
    engine: Engine
    slots: Slots
    generator: Generator | None
    embedder: Embedder | None


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
            )
            for engine, slots in engines
        )
        self._telemetry = telemetry

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Opens all engines, the slowest sets the time; closes them when the block is left. Raises FactoryError."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.TaskGroup() as group:
                    for served in self._engines:
                        stack.push_async_callback(served.engine.close)
                        group.create_task(served.engine.open())
            except* FactoryError as failures:
                raise next(_leaves(failures)) from None
            yield

    def ready(self) -> bool:
        """Whether every engine can serve."""
        return all(served.engine.ready() for served in self._engines)

    def models(self) -> list[tuple[Model, Engine]]:
        """What is served now, and by which engine, sorted by name."""
        found = [(model, served.engine) for served in self._engines for model in served.engine.models()]
        return sorted(found, key=lambda pair: pair[0].name)

    async def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates; closing the iterator stops the engine. Raises FactoryError."""
        arrived = time.perf_counter()
        served = self._find(request.model)
        if served.generator is None:
            raise InvalidArgument(f"The model '{request.model}' embeds; it does not generate.", field="model")
        steps = served.generator.generate(request)  # refuses before the request takes a place
        operation = "chat" if request.prompt is None else "text_completion"
        with self._traced(operation, served.engine, request.model) as span:
            _describe(span, request)
            async with served.slots.place(request.priority), aclosing(steps):
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

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds. Raises FactoryError."""
        served = self._find(model)
        if served.embedder is None:
            raise InvalidArgument(f"The model '{model}' generates; it does not embed.", field="model")
        with self._traced("embeddings", served.engine, model) as span:
            async with served.slots.place(Priority.INTERACTIVE):
                embeddings = await served.embedder.embed(model, texts)
            span.set_attribute("gen_ai.embeddings.dimension.count", embeddings.vectors.shape[1])
            _count(span, model, Usage(embeddings.prompt_tokens, 0))
            return embeddings

    def refuse_adapters(self) -> NoReturn:
        """Raises Unimplemented: no engine of this server takes adapters."""
        names = ", ".join(sorted({served.engine.name for served in self._engines}))
        raise Unimplemented(f"Adapters need an engine that can hold them; this server has: {names}.")

    def _find(self, model: str) -> _Served:
        for served in self._engines:
            if any(each.name == model for each in served.engine.models()):
                if not served.engine.ready():
                    raise Unavailable(f"The engine of '{model}' is not ready.", retry_after_seconds=1.0)
                return served
        known = ", ".join(each.name for each, _ in self.models())
        raise NotFound(
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


def _leaves(group: BaseExceptionGroup[FactoryError]) -> Iterator[FactoryError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
