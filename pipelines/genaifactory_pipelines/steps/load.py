"""load: the trained adapter into the running platform, beside its base, so that it can be evaluated."""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import StringConstraints

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines.step import Context, Step
from genaifactory_pipelines.steps import train
from genaifactory_pipelines.values import Values

_DIGITS = 12
"""Of the weights' SHA-256 that a name ends with."""


class Parameters(Values):
    """Under which name, and where the model server finds it."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "candidate"
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


async def withdraw(context: Context) -> str:
    """Unloads what a run has loaded; its name, or "" where it has loaded nothing. Raises FactoryError."""
    try:
        loaded = await asyncio.to_thread(load.of, context.run)
    except InvalidArgument:  # the run did not come so far
        return ""
    await context.gateway.unload_adapter(loaded.name)
    return loaded.name


load = Step("load", Parameters, Outputs, _load, needs=(train.train,), acts_outside=True)
