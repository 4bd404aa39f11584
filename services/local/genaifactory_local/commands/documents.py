"""`genaifactory ingest` and `genaifactory remove`: what a running platform has read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
from rich.console import Console

from genaifactory_common import channels
from genaifactory_common.errors import InvalidArgument
from genaifactory_local import documents, progress, reach, state
from genaifactory_local.commands.options import JsonOption, KnowledgeBaseOption, StateOption, TenantOption, print_json


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
    tenant: TenantOption = None,
    as_json: JsonOption = False,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Read more documents into a running platform.

    What is known already with the same content costs nothing; what has changed is replaced.

    Example: `genaifactory ingest ~/contracts --group legal --metadata year=2026`
    """
    pairs = dict(_pair(text) for text in metadata or ())
    if not paths and not samples:
        raise InvalidArgument("Give a PATH to read, or --samples.", field="PATH")
    found = documents.find([path.expanduser() for path in paths or ()] + [documents.SAMPLE] * samples)
    platform = reach.find(state_folder)
    sign_in = platform.signing_in(platform.tenant(tenant))
    console = Console(stderr=as_json)
    with progress.bar(console, len(found.documents)) as report:

        async def send() -> documents.Summary:
            async with _connected(platform) as channel:
                return await documents.ingest(
                    channel,
                    sign_in,
                    knowledge_base,
                    found.documents,
                    groups=group or (),
                    metadata=pairs,
                    on_progress=report,
                )

        summary = asyncio.run(send())
    if as_json:
        print_json(
            {
                "added": summary.added,
                "replaced": summary.replaced,
                "unchanged": summary.unchanged,
                "duplicates": summary.duplicates,
                "passages": summary.passages,
                "skipped": found.skipped,
                "refused": [{"document_id": f.document_id, "message": f.message} for f in summary.failures],
            }
        )
    else:
        progress.print_summary(console, summary, found.skipped)
    if summary.failures:
        raise typer.Exit(1)


def remove(
    document_ids: Annotated[
        list[str], typer.Argument(metavar="DOCUMENT_ID...", help="As answers cite them: FOLDER/PATH.")
    ],
    knowledge_base: KnowledgeBaseOption = "documents",
    tenant: TenantOption = None,
    state_folder: StateOption = state.DEFAULT_FOLDER,
) -> None:
    """Remove documents from a running platform; from then on no answer cites them.

    A file that is still in the DOCS of the next `genaifactory run` is read again.

    Example: `genaifactory remove handbook/leave.md`
    """
    platform = reach.find(state_folder)
    sign_in = platform.signing_in(platform.tenant(tenant))
    wanted = list(dict.fromkeys(document_ids))

    async def send() -> int:
        async with _connected(platform) as channel:
            return await documents.remove(channel, sign_in, knowledge_base, wanted)

    print(f"{asyncio.run(send())} of {len(wanted)} documents existed and are removed")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidArgument(f"'{text}' is no metadata; write NAME=VALUE.", field="--metadata")
    return name, value


def _connected(platform: reach.Platform) -> grpc.aio.Channel:
    return channels.connect(platform.address("retriever"), platform.tls, patience_seconds=reach.PATIENCE_SECONDS)
