"""Synchronises a knowledge base with the folders of `genaifactory run`: stores documents, removes those gone since."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from genaifactory_common import channels, space
from genaifactory_common.errors import FactoryError, OutOfSpace
from genaifactory_common.specs.sources import SAMPLES
from genaifactory_local import finding, progress, sources
from genaifactory_pipelines.sources import folder, sending
from genaifactory_pipelines.sources.printable import printable
from genaifactory_pipelines.sources.store import Store

_OWN = Path(__file__).parents[3] / "docs"
# Not the README: it shows questions, and a search for a question finds the question first.
DEFAULT_PATHS = (finding.SAMPLE, *([_OWN] if _OWN.is_dir() else []))
"""Folders that are read without DOCS: a sample handbook, and in a clone of the project its own documents."""
DEFAULT_SOURCES = frozenset((SAMPLES, printable(str(_OWN))))
"""Names of these sources, whose documents are removed when DOCS are given."""

_LIST = "`genaifactory documents list` shows them."


@dataclass(frozen=True)
class FolderSync:
    """The documents of one run, and the knowledge base that stores them."""

    key: str
    """API key of the tenant that they are for."""
    knowledge_base: str
    found: folder.FoundFiles
    console: Console
    chosen: bool
    """DOCS were given; else these are the samples, which are read only where nothing else is stored."""
    verbose: bool = False
    """Every skipped file is named."""

    async def read(self, gateway: str, begun: asyncio.Event) -> bool:
        """Brings the knowledge base to the state of the folders, and prints the outcome.

        gateway: its gRPC address. begun: set when answers report that reading goes on, or when it has ended. Returns
        whether the samples were left out, since documents of other sources are stored.
        """
        try:
            done = await self._read_when_there_is_room(gateway, begun)
        except FactoryError as error:
            self.console.print(f"[red]The documents were not ingested:[/red] {escape(error.message)}", soft_wrap=True)
        else:
            if done is None:
                self._print(f"No DOCS: answers come from what was read before. {_LIST}")
                return True
            progress.print_summary(self.console, done.summary, done.found.skipped, verbose=self.verbose)
            if done.elsewhere:
                self._print(f"{done.elsewhere} documents of other sources are searched too. {_LIST}")
        finally:
            begun.set()
        return False

    async def _read_when_there_is_room(self, gateway: str, begun: asyncio.Event) -> _Done | None:
        """As `_read`; tried again while the disk is full."""
        waits = False
        while True:
            try:
                return await self._read(gateway, begun)
            except OutOfSpace as full:
                if not waits:
                    waits = True
                    why = escape(full.message)
                    self.console.print(f"[red]The documents are read when there is room:[/red] {why}", soft_wrap=True)
            begun.set()
            await asyncio.sleep(space.RETRY_SECONDS)

    async def _read(self, gateway: str, begun: asyncio.Event) -> _Done | None:
        async with channels.connect(gateway, api_key=self.key) as channel:
            store = Store(channel, self.knowledge_base)
            if not self.chosen and await sources.count_others(store, DEFAULT_SOURCES):
                return None
            # Removed first, so that their labels are free and a renamed file is no duplicate of itself.
            removed = 0
            if self.chosen:
                kept = {source.name for source in self.found.sources}
                removed += await self._remove(store, await sources.of_sources(store, DEFAULT_SOURCES - kept))
            found = await sources.labelled(store, self.found)
            removed += await self._remove(store, await sources.gone(store, found))
            with progress.bar(self.console, len(found.documents)) as report:

                def on_progress(summary: sending.Summary) -> None:
                    begun.set()
                    report(summary)

                summary = await sending.ingest(channel, self.knowledge_base, found.documents, on_progress=on_progress)
            summary.removed = removed
            elsewhere = await sources.count_others(store, frozenset(source.name for source in found.sources))
        return _Done(found, summary, elsewhere)

    async def _remove(self, store: Store, document_ids: list[str]) -> int:
        return len(document_ids) - len(await store.remove(document_ids))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class _Done:
    """The outcome of a reading."""

    found: folder.FoundFiles
    summary: sending.Summary
    elsewhere: int
    """Documents of other sources that are stored."""
