"""Every type of engine that factory.yaml may name is one that the model server can make."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import pytest

from genaifactory_common import engine_specs, specs
from genaifactory_common.engine_specs import AnyEngine
from genaifactory_modelserver.engines.factory import make_engine
from genaifactory_modelserver.engines.protocol import AdapterHolder, Embedder, Engine, Generator
from genaifactory_modelserver.settings import Settings
from tests.unit.modelserver.conftest import FACTORY

WEIGHTS = {"model": "qwen", "source": "/nowhere"}
ENTRIES: dict[str, dict[str, str]] = {"vllm": WEIGHTS}
"""Fields that an entry must have, by type; the other types need none."""


def _made(fields: dict[str, Any]) -> tuple[Engine, AnyEngine]:
    source = specs.Source(specs.parse(f"{FACTORY}\nengines: [{json.dumps(fields)}]"))
    (entry,) = source.current.engines
    return make_engine(entry, Settings(), source), entry


@pytest.mark.parametrize("kind", engine_specs.TYPES)
def test_every_type_of_factory_yaml_is_made(kind: str) -> None:
    engine, entry = _made({"type": kind} | ENTRIES.get(kind, {}))
    assert engine.name == kind
    assert {model.name for model in engine.models()} == set(entry.names())
    assert isinstance(engine, Generator | Embedder)


@pytest.mark.parametrize("adapters", [None, {}])
def test_vllm_holds_adapters_when_its_entry_has_them(adapters: object) -> None:
    engine, _ = _made({"type": "vllm", "adapters": adapters} | WEIGHTS)
    assert isinstance(engine, AdapterHolder) is (adapters is not None)


def test_types_are_those_of_the_union() -> None:
    union = get_args(get_args(AnyEngine)[0])
    assert len(engine_specs.TYPES) == len(union) == len(set(engine_specs.TYPES))
    for name, spec in zip(engine_specs.TYPES, union, strict=True):
        assert spec.model_fields["type"].annotation.__args__ == (name,)


def test_the_plugin_in_processes_of_vllm_loads_nothing_else() -> None:
    script = "import sys, genaifactory_modelserver.engines.vllm.plugin; print('pydantic' in sys.modules)"
    done = subprocess.run((sys.executable, "-c", script), check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
