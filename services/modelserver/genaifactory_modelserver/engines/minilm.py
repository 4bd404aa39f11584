"""The engine that embeds: all-MiniLM-L6-v2 through onnxruntime, in threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from genaifactory_common import minilm, specs
from genaifactory_common.engine_specs import MiniLM as MiniLMSpec
from genaifactory_common.errors import Unavailable
from genaifactory_common.minilm import DIMENSIONS, MAX_TOKENS, MiniLM
from genaifactory_modelserver.engines.protocol import Embeddings, Model
from genaifactory_modelserver.settings import Settings

# Texts computed before others get their turn and a cancelled request is noticed; about a tenth of a second.
_TEXTS_A_TURN = 8


def make(spec: MiniLMSpec, settings: Settings, source: specs.Source) -> MiniLMEngine:
    """The engine of an entry."""
    return MiniLMEngine(spec, settings.data_dir)


class MiniLMEngine:
    """Embeds texts; of a text longer than 256 tokens only the beginning is read, and counted."""

    name = "minilm"
    activity = "It is being loaded."

    def __init__(self, spec: MiniLMSpec, cache_dir: Path) -> None:
        """cache_dir: where the prepared graph is kept."""
        self._served = Model(spec.model, context_tokens=MAX_TOKENS, embedding_dimensions=DIMENSIONS)
        self._cache_dir = cache_dir
        self._threads = spec.threads
        self._executor: ThreadPoolExecutor | None = None
        self._model: MiniLM | None = None

    async def open(self) -> None:
        """Loads the weights. Raises Unavailable when they are not installed or the cache cannot be written."""
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="minilm")
        loop = asyncio.get_running_loop()
        try:
            self._model = await loop.run_in_executor(self._executor, minilm.load, self._cache_dir)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"The embedding model cannot be loaded: {error}") from error

    async def close(self) -> None:
        """Ends the threads; waits for the texts in hand."""
        self._model = None
        if self._executor is not None:
            executor, self._executor = self._executor, None
            await asyncio.to_thread(executor.shutdown, wait=True, cancel_futures=True)

    def ready(self) -> bool:
        """Once loaded."""
        return self._model is not None

    def alive(self) -> bool:
        """Always; the graph runs in this process."""
        return True

    def models(self) -> Sequence[Model]:
        """The one model."""
        return (self._served,)

    def serves(self, name: str) -> bool:
        """The one model."""
        return name == self._served.name

    async def embed(self, model: str, texts: Sequence[str]) -> Embeddings:
        """Embeds, a few texts at a time. Raises Unavailable when not open."""
        loop = asyncio.get_running_loop()
        vectors = np.empty((len(texts), DIMENSIONS), np.float32)
        tokens = 0
        for start in range(0, len(texts), _TEXTS_A_TURN):
            if self._model is None or self._executor is None:
                raise Unavailable(f"The engine of '{model}' is closed.", retry_after_seconds=1.0)
            some = texts[start : start + _TEXTS_A_TURN]
            part, read = await loop.run_in_executor(self._executor, _compute, self._model, some)
            vectors[start : start + len(some)] = part
            tokens += read
        return Embeddings(vectors, tokens)


def _compute(model: MiniLM, texts: Sequence[str]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], int]:
    return model.embed(texts), sum(map(model.tokens_read, texts))
