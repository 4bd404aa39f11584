"""`genaifactory adapters`: the LoRA adapters of the model server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory_local import endpoints, state
from genaifactory_local.commands.options import KeyOption, StateOption
from genaifactory_pipelines.gateway import Gateway

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Load and unload LoRA adapters of the model server."
)

_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name under which requests use it.")]


@app.command("load")
def load(
    name: _NameArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, an https:// folder, an MLflow model (models:/…) or object storage (s3://…).",
        ),
    ],
    base: Annotated[
        str, typer.Option(help="The model that it was made for. Without it: the only one that accepts adapters.")
    ] = "",
    sha256: Annotated[str, typer.Option(help="Of its weights, hex. Without it: that of its metadata.json.")] = "",
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Load an adapter on every replica of the model server, which verifies it first.

    Example: `genaifactory adapters load leave-7 november/train/adapter`
    """
    folder = Path(source).expanduser()
    request = gateway_pb2.LoadAdapterRequest(
        name=name, source_uri=str(folder.resolve()) if folder.is_dir() else source, sha256=sha256, base_model=base
    )

    async def call() -> int:
        async with endpoints.find(state_folder).connected(key) as channel:
            return await Gateway(channel, patience_seconds=0).load_adapter(request)

    replicas = asyncio.run(call())
    print(f"{name} is loaded on {replicas} replica{'' if replicas == 1 else 's'}.")


@app.command("unload")
def unload(name: _NameArgument, key: KeyOption = None, state_folder: StateOption = state.DEFAULT_FOLDER) -> None:
    """Unload an adapter from every replica; requests that use it finish first.

    Example: `genaifactory adapters unload leave-7`
    """

    async def call() -> None:
        async with endpoints.find(state_folder).connected(key) as channel:
            await Gateway(channel, patience_seconds=0).unload_adapter(name)

    asyncio.run(call())
    print(f"{name} is not loaded any more.")
