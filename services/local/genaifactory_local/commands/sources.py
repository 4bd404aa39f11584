"""`genaifactory sources`: the sources of factory.yaml, and reading them again."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory_common import specs
from genaifactory_local import endpoints, progress, state
from genaifactory_local.commands.options import JsonOption, KeyOption, StateOption, VerboseOption, print_json, table
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.sources import sync
from genaifactory_pipelines.sources.store import Store
from genaifactory_pipelines.sources.sync import Synced

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read the sources of factory.yaml into their knowledge bases.",
)

_NONE = "There are no sources in factory.yaml. docs/sources.md shows how to name some."


@app.command("list")
def list_sources(
    key: KeyOption = None, as_json: JsonOption = False, state_folder: StateOption = state.DEFAULT_FOLDER
) -> None:
    """List the sources of factory.yaml, with how many of their documents are stored.

    Example: `genaifactory sources list`
    """
    platform = endpoints.find(state_folder)
    factory = platform.factory()

    async def count() -> list[int]:
        async with platform.connected(key) as channel:
            return [
                (await Store(channel, each.knowledge_base).page(source=each.name, size=1)).total
                for each in factory.sources
            ]

    counts = asyncio.run(count()) if factory.sources else []
    if as_json:
        found = [each.model_dump(mode="json") for each in factory.sources]
        print_json([{**each, "documents": count} for each, count in zip(found, counts, strict=True)])
        return
    if not counts:
        print(_NONE)
        return
    shown = table("Source", "Type", "Place", "Knowledge base", "Groups", "Documents")
    for source, stored in zip(factory.sources, counts, strict=True):
        groups = ", ".join(source.groups) or "-"
        shown.add_row(source.name, source.type, escape(source.place), source.knowledge_base, groups, f"{stored:,}")
    Console().print(shown)


@app.command("sync")
def synchronise(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Sources of factory.yaml. Without one: all.")
    ] = None,
    shrinking: Annotated[
        bool, typer.Option("--shrinking", help="Remove what is gone, even if it is more than least_share allows.")
    ] = False,
    key: KeyOption = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Read sources again: new and changed documents are stored, those that are gone are removed.

    Example: `genaifactory sources sync handbook`
    """
    platform = endpoints.find(state_folder)
    wanted = sync.chosen(platform.factory(), names or (), field="NAME")
    console = Console(stderr=as_json)

    async def run(sources: list[specs.AnySource]) -> list[Synced]:
        async with platform.connected(key) as channel:
            return await sync.synchronise(channel, sources, Progress(Console(stderr=True)), shrinking=shrinking)

    done = asyncio.run(run(wanted)) if wanted else []
    if as_json:
        print_json([_as_json(each) for each in done])
    elif not done:
        print(_NONE)
    for each in () if as_json else done:
        console.print(f"{each.source}:", highlight=False)
        progress.print_summary(console, each.summary, each.skipped, verbose=verbose)
    if not all(each.complete for each in done):
        raise typer.Exit(1)


def _as_json(done: Synced) -> dict[str, Any]:
    return {
        "source": done.source,
        "removed": done.summary.removed,
        **progress.as_json(done.summary, done.skipped),
        "complete": done.complete,
    }
