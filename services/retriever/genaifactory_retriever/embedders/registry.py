"""Loads the embedders that knowledge bases name, each once."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from genaifactory_common import specs
from genaifactory_retriever.embedders.protocol import Embedder


class Embedders:
    """The loaded embedders; one ends when no index version uses it any more."""

    def __init__(self, cache_dir: Path) -> None:
        """cache_dir: where graphs that are built are kept."""
        self._cache_dir = cache_dir
        self._loading = asyncio.Lock()
        self._loaded: WeakValueDictionary[tuple[specs.AnyEmbedder, str], Embedder] = WeakValueDictionary()

    async def load(self, spec: specs.AnyEmbedder) -> Embedder:
        """The one object for a spec and the present content of its files. Raises Unavailable."""
        async with self._loading:  # a model that is loaded twice at once may not fit into memory
            module = await asyncio.to_thread(_module, spec)
            known = self._loaded.get((spec, await asyncio.to_thread(module.digest, spec, self._cache_dir)))
            if known is not None:
                return known
            embedder: Embedder = await asyncio.to_thread(module.load, spec, self._cache_dir)
            return self._loaded.setdefault((spec, embedder.digest), embedder)


def _module(spec: specs.AnyEmbedder) -> Any:
    """The module beside this one that has the name of its type, with `load` and `digest` of a spec and a folder.

    It is imported when a knowledge base names it, since its libraries may be large.
    """
    return import_module(f"{__package__}.{spec.type}")
