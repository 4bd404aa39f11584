"""Loads the embedders that knowledge bases name, each once."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from weakref import WeakValueDictionary

from genaifactory_common import specs
from genaifactory_retriever.embedders.protocol import Embedder


class Embedders:
    """The loaded embedders; one ends when no index version uses it any more."""

    def __init__(self, cache_dir: Path) -> None:
        """cache_dir: where graphs that are built are kept."""
        self._cache_dir = cache_dir
        self._loaded: WeakValueDictionary[tuple[specs.AnyEmbedder, str], Embedder] = WeakValueDictionary()

    async def load(self, spec: specs.AnyEmbedder) -> Embedder:
        """The one object for a spec and the present content of its files. Raises Unavailable."""
        embedder = await asyncio.to_thread(_load, spec, self._cache_dir)
        return self._loaded.setdefault((spec, embedder.digest), embedder)


def _load(spec: specs.AnyEmbedder, cache_dir: Path) -> Embedder:
    """By the module beside this one that has the name of its type, with a function `load` of these arguments.

    It is imported when a knowledge base names it, since its libraries may be large.
    """
    module = import_module(f"{__package__}.{spec.type}")
    embedder: Embedder = module.load(spec, cache_dir)
    return embedder
