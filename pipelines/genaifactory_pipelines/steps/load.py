"""load: the trained adapter into the running platform, beside its base, so that it can be evaluated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from pydantic import StringConstraints

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common import specs
from genaifactory_common.engine_specs import Vllm
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import train
from genaifactory_pipelines.values import Values

_DIGITS = 12
"""Of the weights' SHA-256 that a name ends with."""


Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of an adapter's name: letters, digits and . _ -, at most 64."""


class Parameters(Values):
    """Under which name, and where the model server finds it."""

    name: Prefix = "candidate"
    """What the adapter's name begins with; the first digits of its SHA-256 follow, so that other weights have another
    name."""
    source: str = ""
    """The adapter as the model server sees it: a folder, `runs:/...`, `models:/...`, `s3://...`. It must hold the
    weights that were trained. Empty: the folder of this run, which the model server must be able to read."""
    engine: str = ""
    """The engine that gets it; empty: the only one that accepts adapters."""


class Outputs(Values):
    """What is loaded."""

    name: str
    """Of the adapter, at the model server."""
    base_model: str
    """That it was trained for."""
    replicas: int
    """Of the model server, all of which have it."""


async def _load(parameters: Parameters, context: Context, folder: object) -> Outputs:
    """Raises FactoryError. Loading the same weights again changes nothing."""
    trained = await asyncio.to_thread(train.train.of, context.run)
    local = context.run / train.train.name / train.ADAPTER
    request = gateway_pb2.LoadAdapterRequest(
        name=f"{parameters.name}-{trained.sha256[:_DIGITS]}",
        source_uri=parameters.source or str(await asyncio.to_thread(local.resolve)),
        sha256=trained.sha256,
        base_model=parameters.engine,
    )
    replicas = await context.gateway.load_adapter(request)
    context.progress.line(f"load: {request.name} on {replicas:,} replica{'' if replicas == 1 else 's'}")
    return Outputs(name=request.name, base_model=trained.base_model, replicas=replicas)


async def withdraw(context: Context, factory: Callable[[], specs.Factory]) -> str:
    """Unloads what a run has loaded, unless factory.yaml names it; the name of what was unloaded, or "".

    factory: the one in force; blocks. Equal weights have equal names, so that an adapter that was released before
    answers under the name that this run has loaded.

    Raises FactoryError; nothing is unloaded where factory.yaml cannot be read.
    """
    try:
        loaded = await asyncio.to_thread(load.of, context.run)
    except InvalidArgument:  # the run did not come so far
        return ""
    if named(await asyncio.to_thread(factory), loaded.name):
        context.progress.line(f"load: {stays(loaded.name)}")
        return ""
    await context.gateway.unload_adapter(loaded.name)
    context.progress.line(f"load: {loaded.name} is unloaded")
    return loaded.name


def named(factory: specs.Factory, adapter: str) -> bool:
    """Whether factory.yaml names an adapter: as what a model answers with, or as what every replica serves."""
    models = (each.backend for each in factory.models)
    served = (each.adapters.serve for each in factory.engines if isinstance(each, Vllm) and each.adapters is not None)
    return any(each.type == "modelserver" and each.model == adapter for each in models) or any(
        each.name == adapter for adapters in served for each in adapters
    )


def stays(adapter: str) -> str:
    """For people, of an adapter that is not unloaded."""
    return f"{adapter} stays loaded: factory.yaml names it"


load = Step("load", Parameters, Outputs, _load, needs=(train.train,), acts_outside=True)
