"""`genaifactory ingest` and `genaifactory documents`: the documents of a running platform."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from genaifactory.gateway.v1 import gateway_pb2
from genaifactory.types.v1 import types_pb2
from genaifactory_common.errors import InvalidArgument, NotFound
from genaifactory_local import catalogue, endpoints, finding, progress, sources, state
from genaifactory_local.catalogue import Catalogue
from genaifactory_local.commands.options import (
    JsonOption,
    KeyOption,
    KnowledgeBaseOption,
    StateOption,
    UrlOption,
    VerboseOption,
    key_for_url,
    print_json,
    table,
)
from genaifactory_pipelines.sources import folder, sending
from genaifactory_pipelines.sources.selection import Reason
from genaifactory_pipelines.sources.store import Store, stored

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List, show and remove the documents of a running platform.",
)

_SHOWN = 200
_SHOWN_CHARACTERS = 20_000
_WIDE = 200

Result = TypeVar("Result")


def ingest(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Folders or files to read.", show_default=False)
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Read a small bilingual sample handbook.")] = False,
    knowledge_base: KnowledgeBaseOption = "documents",
    group: Annotated[
        list[str] | None, typer.Option(help="Only keys with this group see the documents. May be given again.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="To filter by. May be given again.")
    ] = None,
    key: KeyOption = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Read more documents into a running platform.

    Documents that are stored with the same content are skipped; changed ones are replaced.

    Example: `genaifactory ingest ~/contracts --group legal --metadata year=2026`
    """
    pairs = dict(_pair(text) for text in metadata or ())
    if not paths and not samples:
        raise InvalidArgument("Give a PATH to read, or --samples.", field="PATH")
    found = finding.find([path.expanduser() for path in paths or ()] + [finding.SAMPLE] * samples)
    platform = endpoints.find(state_folder)
    console = Console(stderr=as_json)

    async def send() -> tuple[folder.FoundFiles, sending.Summary]:
        async with platform.connected(key) as channel:
            named = await sources.labelled(Store(channel, knowledge_base), found)
            with progress.bar(console, len(named.documents)) as report:
                return named, await sending.ingest(
                    channel,
                    knowledge_base,
                    named.documents,
                    groups=group or (),
                    metadata=pairs,
                    on_progress=report,
                )

    named, summary = asyncio.run(send())
    if as_json:
        print_json(progress.as_json(summary, named.skipped))
    else:
        progress.print_summary(console, summary, named.skipped, verbose=verbose)
    if summary.failures or any(each.reason is Reason.UNREADABLE for each in named.skipped):
        raise typer.Exit(1)


@app.command("list")
def list_documents(
    prefix: Annotated[str, typer.Option(help="Only documents whose id begins with this.")] = "",
    source: Annotated[str, typer.Option(help="Only documents of this source; `documents sources` lists them.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many documents to print at most, in the table.")] = _SHOWN,
    knowledge_base: KnowledgeBaseOption = "documents",
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """List stored documents, by id. --json lists all.

    Example: `genaifactory documents list --prefix handbook/`
    """

    async def read(of: Catalogue) -> tuple[list[types_pb2.Document], int]:
        total = (await of.page(prefix=prefix, source=source, size=1)).total
        found: list[types_pb2.Document] = []
        async for document in stored(of, prefix=prefix, source=source):
            found.append(document)
            if not as_json and len(found) == limit:
                break
        return found, total

    found, total = _asked(read, knowledge_base, url, key, state_folder)
    if as_json:
        print_json([_facts(document) for document in found])
    elif not found:
        which = "that match" if prefix or source else "yet"
        print(f"No documents {which} in '{knowledge_base}'. Read some with: genaifactory ingest PATH")
    else:
        _print_table(found)
        if total > len(found):
            print(f"{len(found)} of {total}; --limit prints more, --prefix and --source filter.")


@app.command("sources")
def list_sources(
    knowledge_base: KnowledgeBaseOption = "documents",
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """List the folders and files that documents were read from.

    Example: `genaifactory documents sources`
    """
    counts = _asked(catalogue.sources, knowledge_base, url, key, state_folder)
    if as_json:
        print_json([{"source": name, "documents": count} for name, count in counts.items()])
        return
    if not counts:
        print(f"No documents yet in '{knowledge_base}'. Read some with: genaifactory ingest PATH")
        return
    shown = table("Source")
    shown.add_column("Documents", justify="right")
    for name, count in counts.items():
        shown.add_row(escape(name) or "(not kept)", f"{count:,}")
    _console().print(shown)


@app.command("show")
def show_document(
    document_id: Annotated[str, typer.Argument(metavar="DOCUMENT_ID", help="As answers cite it: FOLDER/PATH.")],
    characters: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many characters of its text to print at most.")
    ] = _SHOWN_CHARACTERS,
    knowledge_base: KnowledgeBaseOption = "documents",
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Show one document: its metadata, and its text as it was parsed.

    Example: `genaifactory documents show handbook/leave.md`
    """

    async def read(of: Catalogue) -> gateway_pb2.GetDocumentResponse:
        return await catalogue.get(of, document_id, characters)

    shown = _asked(read, knowledge_base, url, key, state_folder)
    facts = _facts(shown.document)
    if as_json:
        sections = [{"headings": list(each.headings), "text": each.text} for each in shown.sections]
        print_json(facts | {"sections": sections, "complete": not shown.next_offset})
        return
    console = _console()
    for name, value in facts.items():
        if value:
            console.print(f"[bold]{name}[/bold]  {escape(str(value))}", soft_wrap=True, highlight=False)
    for section in shown.sections:
        if section.headings:
            console.print(f"\n[bold]{escape(' > '.join(section.headings))}[/bold]", soft_wrap=True, highlight=False)
        console.print(f"\n{section.text}", soft_wrap=True, highlight=False, markup=False)
    if shown.next_offset:
        console.print(f"\nThe first {characters} characters; --characters prints more.", highlight=False)


@app.command("remove")
def remove(
    document_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[DOCUMENT_ID]...", help="As answers cite them: FOLDER/PATH.")
    ] = None,
    source: Annotated[str, typer.Option(help="All documents of this source; `documents sources` lists them.")] = "",
    knowledge_base: KnowledgeBaseOption = "documents",
    url: UrlOption = None,
    key: KeyOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Remove documents from a running platform; from then on no answer cites them.

    A file that is still in the DOCS of the next `genaifactory run` is read again.

    Example: `genaifactory documents remove handbook/leave.md`
    """
    wanted = list(dict.fromkeys(document_ids or ()))
    if not wanted and not source:
        raise InvalidArgument("Give a DOCUMENT_ID to remove, or --source.", field="DOCUMENT_ID")

    async def send(of: Catalogue) -> None:
        from_source = [each.document_id async for each in stored(of, source=source)] if source else []
        ids = list(dict.fromkeys([*wanted, *from_source]))
        if not ids:
            known = ", ".join(filter(None, await catalogue.sources(of))) or "none"
            raise NotFound(f"No document was read from '{source}'; there are: {known}.", field="--source")
        missing = await of.remove(ids)
        removed = len(ids) - len(missing)
        if removed:
            print(f"{removed} document{'s' if removed > 1 else ''} removed")
        if missing:
            raise await catalogue.unknown(of, missing)

    _asked(send, knowledge_base, url, key, state_folder)


def _asked(
    work: Callable[[Catalogue], Coroutine[Any, Any, Result]],
    knowledge_base: str,
    url: str | None,
    key: str | None,
    state_folder: Path,
) -> Result:
    """Runs the work on the platform at --url with --key, else on the cluster's or the one on the state folder."""
    if url is not None:
        return asyncio.run(work(catalogue.OverHttp(url, key_for_url(key), knowledge_base)))
    platform = endpoints.find(state_folder)

    async def run() -> Result:
        async with platform.connected(key) as channel:
            return await work(Store(channel, knowledge_base))

    return asyncio.run(run())


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidArgument(f"'{text}' is not metadata; write NAME=VALUE.", field="--metadata")
    return name, value


def _facts(document: types_pb2.Document) -> dict[str, Any]:
    return {
        "id": document.document_id,
        "title": document.title,
        "uri": document.uri,
        "media_type": document.media_type,
        "language": document.language,
        "size_bytes": document.size_bytes,
        "passages": document.passages,
        "stored": document.store_time.ToJsonString() if document.HasField("store_time") else None,
        "source": document.source,
        "groups": list(document.allowed_groups),
        "metadata": dict(document.metadata),
    }


def _print_table(found: list[types_pb2.Document]) -> None:
    shown = table("Document", "Title")
    for heading in ("Size", "Passages"):
        shown.add_column(heading, justify="right")
    for heading in ("Stored", "Source", "Groups"):
        shown.add_column(heading)
    for each in found:
        stored = each.store_time.ToDatetime().strftime("%Y-%m-%d %H:%M") if each.HasField("store_time") else "-"
        shown.add_row(
            escape(each.document_id),
            escape(each.title),
            _size(each.size_bytes),
            f"{each.passages:,}",
            stored,
            escape(each.source) or "-",
            escape(", ".join(each.allowed_groups)) or "-",
        )
    _console().print(shown)


def _size(size_bytes: int) -> str:
    if not size_bytes:
        return "-"
    return f"{size_bytes} B" if size_bytes < 1024 else f"{size_bytes / 1024:,.0f} KiB"


def _console() -> Console:
    """Wide where the output is not a terminal, so that programs get whole ids."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
