"""`genaifactory config`: checks and explains factory.yaml."""

from __future__ import annotations

import getpass
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from genaifactory_common import specs
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import configuration
from genaifactory_local.commands.options import print_json

app = typer.Typer(no_args_is_help=True, help="Check and explain factory.yaml, the one configuration file.")


@app.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(envvar="GENAIFACTORY_FACTORY_FILE", help="The file to check.")] = Path(
        "factory.yaml"
    ),
) -> None:
    """Say whether a factory.yaml is right, and if not, the path of every bad field.

    Example: `genaifactory config check factory.yaml`
    """
    try:
        factory = configuration.load(file)
    except specs.InvalidConfiguration as error:
        for problem in error.problems:
            print(f"{file}: {problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{file} is right: routes {', '.join(route.name for route in factory.routes)}")


@app.command("hash-key")
def config_hash_key(
    key: Annotated[str | None, typer.Argument(help="The key, or - to type it. Without it a new key is made.")] = None,
) -> None:
    """Make an API key and the hash of it that factory.yaml wants (tenants[].keys[].sha256).

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
