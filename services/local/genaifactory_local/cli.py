"""The `genaifactory` command line: run, ask, documents, usage, export, watch, blocked, trace, smoke, config."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from genaifactory_common.errors import FactoryError
from genaifactory_local.commands import ask, blocked, config, documents, records, run, trace, watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="GenAI Factory: answers from your documents, with citations, guardrails and a record of every answer.",
)
app.command()(run.run)
app.command()(ask.ask)
app.command()(documents.ingest)
app.command()(documents.remove)
app.command()(records.usage)
app.command()(records.export)
app.command()(watch.watch)
app.command()(trace.trace)
app.command()(blocked.blocked)
app.command("smoke")(ask.smoke_test)
app.add_typer(documents.app, name="documents")
app.add_typer(config.app, name="config")


def main() -> None:
    """Runs the command line; an error is one line on stderr and a non-zero exit code."""
    try:
        app()
    except FactoryError as error:
        _fail(error.message)
    except BrokenPipeError:  # the reader of a pipe has seen enough
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
    version: Annotated[  # typer calls it back
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
