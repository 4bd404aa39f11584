"""`genaifactory run`: starts the platform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from genaifactory_local import state
from genaifactory_local.commands.options import StateOption, VerboseOption


def run(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[DOCS]...", help="Folders or files to read first.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the OpenAI API; 0: any free one.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Port of the gRPC API; 0: any free one.")] = 8081,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: other machines may connect.")] = "127.0.0.1",
    config: Annotated[
        Path | None, typer.Option(help="The factory.yaml to follow. Without it: ./factory.yaml, or a default.")
    ] = None,
    knowledge_base: Annotated[
        str | None, typer.Option(help="Where the documents are stored. Without it: the first of factory.yaml.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Answer with this model, on vLLM: a folder with its weights, ORG/NAME of a hub, or an https:// folder."
        ),
    ] = None,
    verbose: VerboseOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Start the platform: all six services in this process, until Ctrl-C.

    Reads Markdown, reStructuredText, text, HTML, PDF, Word, Excel, PowerPoint, CSV, EPUB, mail and source code from
    DOCS; without DOCS a small sample handbook. Prints the key and how to ask.

    Example: `genaifactory run ~/handbook --port 9000`
    """
    from genaifactory_local import run as platform_run  # only this command needs it

    try:
        platform_run.run(
            platform_run.Options(
                paths=tuple(paths or ()),
                state_folder=state_folder,
                config=config,
                knowledge_base=knowledge_base,
                host=host,
                http_port=port,
                grpc_port=grpc_port,
                model=model,
                verbose=verbose,
            ),
            Console(),
        )
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except OSError as error:
        raise state.explained(error, state_folder) from None
