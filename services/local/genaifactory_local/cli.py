"""The `genaifactory` command line; `_COMMANDS` names its commands."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genaifactory_common.errors import FactoryError

_COMMANDS = {
    "run": "run.run",
    "ask": "ask.ask",
    "ingest": "documents.ingest",
    "remove": "documents.remove",
    "usage": "records.usage",
    "export": "records.export",
    "dataset": "dataset.dataset",
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
    "retrain": "retrain.retrain",
    "drift": "drift.drift",
    "reindex": "indexes.reindex",
    "watch": "watch.watch",
    "trace": "trace.trace",
    "blocked": "blocked.blocked",
    "smoke": "ask.smoke_test",
    "documents": "documents.app",
    "sources": "sources.app",
    "indexes": "indexes.app",
    "adapters": "adapters.app",
    "registry": "registry.app",
    "reproduce": "reproduce.reproduce",
    "splits": "splits.app",
    "config": "config.app",
}
"""Name -> module and object in genaifactory_local.commands, in the order of the help."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name; a module is imported when one of its commands is used.

    Importing all of them takes a third of the CPU of `genaifactory ask`.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, _COMMANDS[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


def _load(name: str, where: str) -> Any:
    module, _, attribute = where.partition(".")
    found = getattr(importlib.import_module(f"genaifactory_local.commands.{module}"), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    one = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    one.command(name)(found)
    return typer.main.get_command(one)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="GenAI Factory: answers from your documents, with citations, guardrails and a record of every answer.",
)


def main() -> None:
    """Runs the command line; an error is one line on stderr and a non-zero exit code."""
    try:
        app()
    except FactoryError as error:
        _fail(error.message)
    except BrokenPipeError:  # the reader of the pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(message: str) -> None:
    print(f"genaifactory: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"genaifactory {importlib.metadata.version('genaifactory-local')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # read by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
