"""The engine with weights: vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Each of vLLM's processes loads `plugin`, and so this module, and needs nothing else of the model server.
if TYPE_CHECKING:
    from genaifactory_common import specs
    from genaifactory_common.engine_specs import Vllm
    from genaifactory_modelserver.engines.protocol import Engine
    from genaifactory_modelserver.settings import Settings


def make(spec: Vllm, settings: Settings, source: specs.Source) -> Engine:
    """The engine of an entry; an AdapterHolder when the entry has `adapters`."""
    from genaifactory_modelserver.engines.vllm.adapter_engine import VllmAdapterEngine
    from genaifactory_modelserver.engines.vllm.engine import VllmEngine

    return (VllmAdapterEngine if spec.adapters is not None else VllmEngine)(spec, settings, source)
