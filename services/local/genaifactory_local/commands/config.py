"""`genaifactory config`: checks factory.yaml, makes keys for it, prints its schema."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from genaifactory_common import specs, stored
from genaifactory_common.errors import InvalidArgument, Unavailable
from genaifactory_local import configuration, endpoints, inventory, state
from genaifactory_local.commands.options import KeyOption, StateOption, print_json

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check factory.yaml, the one configuration file; make keys for it; print its schema.",
)


@app.command("check")
def config_check(
    file: Annotated[
        Path | None,
        typer.Argument(
            envvar="GENAIFACTORY_FACTORY_FILE",
            help="The file to check. Without it: ./factory.yaml, or that of the platform on --state.",
            show_default=False,
        ),
    ] = None,
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Check a factory.yaml; print the path of every wrong field.

    It is also compared with what the running platform stores: a tenant or knowledge base that is gone while documents,
    conversations or records are stored under its name is an error, since no key would reach them. The comparison needs
    a key with the permissions 'operate' and 'usage': it counts what all tenants store.

    Example: `genaifactory config check factory.yaml`
    """
    if file is None:
        file = configuration.without_choice(state.State(state_folder.absolute()))
        if not file.exists():
            raise InvalidArgument("There is no factory.yaml here or in the state folder: name the FILE.", field="FILE")
    try:
        factory = specs.load(file)
    except specs.InvalidConfiguration as error:
        print("\n".join(error.lines), file=sys.stderr)
        raise typer.Exit(1) from None
    compared = _compared(factory, state_folder, key)
    for each in compared.hidden:
        print(f"{file}: {each}" if each.renamed else f"{file}: warning: {each}", file=sys.stderr)
    if any(each.renamed for each in compared.hidden):
        raise typer.Exit(1)
    print(f"{file} is valid: routes {', '.join(route.name for route in factory.routes)}")
    for why in compared.unknown:
        print(f"Not compared with what is stored: {why}")


@dataclass(frozen=True)
class _Compared:
    hidden: tuple[stored.Hidden, ...] = ()
    unknown: tuple[str, ...] = ()
    """What the document could not be compared with, each with the reason."""


def _compared(factory: specs.Factory, folder: Path, key: str | None) -> _Compared:
    """Compares the document with what the platform on the folder, or on the cluster, stores."""
    try:
        platform = endpoints.find(folder)
    except Unavailable as error:
        return _Compared(unknown=(error.message,))
    if isinstance(platform, endpoints.OnThisMachine):  # `genaifactory run` adds it to every version
        factory = configuration.with_development_key(factory, specs.hash_key(platform.key()))

    async def count() -> inventory.Inventory:
        async with platform.connected(key, patience_seconds=inventory.PATIENCE_SECONDS) as channel:
            return await inventory.take(channel)

    try:
        found = asyncio.run(count())
    except InvalidArgument as error:  # no API key is given
        return _Compared(unknown=(error.message,))
    return _Compared(stored.hidden(factory, found.stored), found.unknown)


@app.command("hash-key")
def config_hash_key(
    key: Annotated[str | None, typer.Argument(help="The key, or - to type it. Without it a new key is made.")] = None,
) -> None:
    """Make an API key and its hash for factory.yaml (tenants[].keys[].sha256).

    Example: `genaifactory config hash-key`
    """
    if key == "-":
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    if key is None:
        key = f"gf-{secrets.token_urlsafe(32)}"
        print(f"key:    {key}   (shown only now)")
    if not key:
        raise InvalidArgument("The key is empty.", field="KEY")
    print(f"sha256: {specs.hash_key(key)}")


@app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of factory.yaml, for editors that complete and check as you type.

    Example: `genaifactory config schema > factory.schema.json`
    """
    print_json(specs.Factory.model_json_schema())
