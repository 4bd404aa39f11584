"""Options that several commands share, and how they print tables and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from genaifactory_common.errors import InvalidArgument
from genaifactory_pipelines import exits

StateOption = Annotated[
    Path, typer.Option("--state", envvar="GENAIFACTORY_STATE", help="Folder that holds the platform's state.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        envvar="GENAIFACTORY_API_KEY",
        help="API key, which decides the tenant. Without it: the key of the platform on --state.",
    ),
]
KnowledgeBaseOption = Annotated[str, typer.Option(help="A knowledge base of factory.yaml.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Name all files that were skipped or guessed at.")]
UrlOption = Annotated[str | None, typer.Option(help="URL of the platform. Without it: the platform on --state.")]
NOT_PASSED = exits.NOT_PASSED
"""Exit status of a check that was carried out and not passed; 1 is an error, 2 a wrong option."""
AtOnceOption = Annotated[int, typer.Option(min=1, max=64, help="Questions at a time, of each of the two.")]
TextsOption = Annotated[
    bool,
    typer.Option(
        "--mlflow-texts/--no-mlflow-texts",
        help="Whether MLflow gets texts of examples, golden items and answers; else it gets counts and scores.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]


def key_for_url(key: str | None) -> str:
    """The API key for --url, which has no default. Raises InvalidArgument when none is given."""
    if key is None:
        raise InvalidArgument("--url needs --key, or the environment variable GENAIFACTORY_API_KEY.", field="--key")
    return key


def table(*headings: str) -> Table:
    """A table without lines, whose columns fold what is too long."""
    empty = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        empty.add_column(heading, overflow="fold")
    return empty


def print_json(value: Any) -> None:
    """Prints a value for programs, with Vietnamese text as it is."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
