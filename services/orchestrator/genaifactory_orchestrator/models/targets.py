"""The models of factory.yaml as call targets: each with its backend, circuit breaker and retry budget."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import httpx2
from prometheus_client import Gauge

from genaifactory_common import specs
from genaifactory_common.errors import NotFound, Reason
from genaifactory_orchestrator.models.backend import Backend
from genaifactory_orchestrator.models.modelserver import ModelServerBackend
from genaifactory_orchestrator.models.openai import OpenAIBackend
from genaifactory_orchestrator.models.resilience import CircuitBreaker, Clock, RetryBudget

BREAKER_STATE = Gauge(
    "genaifactory_model_circuit_state", "Circuit of a model: 0 closed, 1 on trial, 2 open.", ["model"]
)


class Target:
    """One model, ready to be called."""

    def __init__(self, spec: specs.Model, backend: Backend, breaker: CircuitBreaker) -> None:
        self.spec = spec
        self.backend = backend
        self.budget = RetryBudget()
        self.breaker = breaker
        self.calls = 0
        self.retired = False


class Targets:
    """Follows factory.yaml: a model whose spec changes gets a new backend; running calls finish on the old one."""

    def __init__(
        self, source: specs.Source, modelserver: grpc.aio.Channel, environ: Mapping[str, str], clock: Clock
    ) -> None:
        self._source = source
        self._modelserver = modelserver
        self._environ = environ
        self._clock = clock
        self._factory = source.current
        self._targets: dict[str, Target] = {}
        self._tls: ssl.SSLContext | None = None

    async def open(self) -> None:
        """Reads the trusted roots, once for all pools."""
        for name in ("httpx2", "httpcore2"):  # at INFO they log every request with its URL
            logging.getLogger(name).setLevel(logging.WARNING)
        self._tls = await asyncio.to_thread(httpx2.create_ssl_context)

    @asynccontextmanager
    async def use(self, names: tuple[str, ...], kind: str, adapter: str = "") -> AsyncIterator[list[Target]]:
        """The models of these names, kept open inside the block. Raises NotFound for one of another kind.

        adapter: of the model server; these calls go to it instead. Its failures do not count for the models' circuits.
        """
        if self._factory is not self._source.current:
            await self._follow(self._source.current)
        async with AsyncExitStack() as stack:
            targets = []
            for name in names:
                target = self._target(name, kind)
                if adapter:
                    target = self._with_adapter(target.spec, adapter)
                target.calls += 1
                stack.push_async_callback(self._release, target)
                targets.append(target)
            yield targets

    async def close(self) -> None:
        """Closes every backend."""
        targets, self._targets = self._targets, {}
        for target in targets.values():
            await target.backend.close()

    def _target(self, name: str, kind: str) -> Target:
        target = self._targets.get(name)
        if target is None:
            spec = self._factory.model(name)
            if spec is None:
                raise NotFound(f"There is no model '{name}'.", field="model", reason=Reason.MODEL_NOT_FOUND)
            state = BREAKER_STATE.labels(name)
            state.set(0)
            target = Target(spec, self._backend(spec), CircuitBreaker(spec.circuit_breaker, self._clock, state.set))
            self._targets[name] = target
        if target.spec.kind != kind:
            raise NotFound(f"'{name}' is no {kind} model.", field="model", reason=Reason.MODEL_NOT_FOUND)
        return target

    def _with_adapter(self, spec: specs.Model, adapter: str) -> Target:
        backend = ModelServerBackend(spec.name, adapter, self._modelserver, evaluated=True)
        return Target(spec, backend, CircuitBreaker(spec.circuit_breaker, self._clock))

    def _backend(self, spec: specs.Model) -> Backend:
        if isinstance(spec.backend, specs.ModelServerBackend):
            return ModelServerBackend(spec.name, spec.backend.model, self._modelserver)
        assert self._tls is not None, "used before open()"
        return OpenAIBackend(spec.name, spec.backend, self._environ, self._tls)

    async def _follow(self, factory: specs.Factory) -> None:
        self._factory = factory
        for name, target in list(self._targets.items()):
            if factory.model(name) != target.spec:
                del self._targets[name]
                target.retired = True
                await self._close_if_unused(target)

    async def _release(self, target: Target) -> None:
        target.calls -= 1
        await self._close_if_unused(target)

    async def _close_if_unused(self, target: Target) -> None:
        if target.retired and target.calls == 0:
            await target.backend.close()
