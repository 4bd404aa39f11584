"""The engine with weights for an entry of factory.yaml that has adapters."""

from __future__ import annotations

import asyncio

from genaifactory_common.engine_specs import Adapter
from genaifactory_modelserver.adapters import files
from genaifactory_modelserver.adapters.set import AdapterSet
from genaifactory_modelserver.engines.protocol import Model
from genaifactory_modelserver.engines.vllm.engine import VllmEngine


class VllmAdapterEngine(VllmEngine):
    """Serves a base model whose entry has `adapters`, and loads more of them."""

    async def load_adapter(self, name: str, source_uri: str, sha256: str) -> Model:
        """Verifies the adapter and serves it. Raises FactoryError; then nothing has changed."""
        await self._opened().load(Adapter(name=name, source=source_uri, sha256=sha256))
        return Model(name, self._base.context_tokens, base_model=self._base.name)

    async def unload_adapter(self, name: str) -> None:
        """Serves it no more; returns when the requests that use it are finished."""
        adapters = self._opened()
        if name in adapters:
            await adapters.unload(name)
            kept = await adapters.checksums()
            await asyncio.to_thread(files.remove_unreferenced, self._store, kept)

    async def knows(self, name: str) -> bool:
        """Whether another replica has loaded it since the last look."""
        if self._adapters is None:
            return False
        await self._adapters.refresh()
        return name in self._adapters

    def _opened(self) -> AdapterSet:
        if self._adapters is None:
            raise self._not_open()
        return self._adapters
