"""What `genaifactory run` does with documents: takes those of its folders, drops those that are gone from them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from genaifactory_common import channels, files, space
from genaifactory_common.errors import FactoryError, OutOfSpace
from genaifactory_common.identity import Signer
from genaifactory_local import configuration, documents, progress
from genaifactory_local.state import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """The documents of one run, and where they go."""

    state: State
    signer: Signer
    tenant: str
    knowledge_base: str
    found: documents.Found
    console: Console

    async def read(self, retriever: str, begun: asyncio.Event) -> None:
        """Brings the knowledge base to what the folders hold, and says on the console what became of it.

        retriever: its gRPC address. begun: set when answers say that reading goes on, or when it has ended.
        """
        try:
            summary = await self._read_when_there_is_room(retriever, begun)
        except (FactoryError, OSError) as error:  # OSError: the state folder takes no more
            why = error.message if isinstance(error, FactoryError) else f"{error.filename}: {error.strerror}"
            self.console.print(f"[red]The documents were not ingested:[/red] {escape(why)}", soft_wrap=True)
        else:
            progress.print_summary(self.console, summary, self.found.skipped)
        finally:
            begun.set()

    async def _read_when_there_is_room(self, retriever: str, begun: asyncio.Event) -> documents.Summary:
        """As `_read`; a disk that is full is waited for."""
        waits = False
        while True:
            try:
                return await self._read(retriever, begun)
            except (OutOfSpace, OSError) as error:
                if not isinstance(error, OutOfSpace) and not space.is_full(error):
                    raise
                full = error if isinstance(error, OutOfSpace) else space.out_of_space(self.state.folder)
            if not waits:
                waits = True
                self.console.print(f"[red]The documents wait to be read:[/red] {escape(full.message)}", soft_wrap=True)
            begun.set()
            await asyncio.sleep(space.RETRY_SECONDS)

    async def _read(self, retriever: str, begun: asyncio.Event) -> documents.Summary:
        known = await asyncio.to_thread(taken, self.state, self.tenant, self.knowledge_base)
        here = {document.document_id for document in self.found.documents}
        folders = tuple(f"{folder}/" for folder in self.found.folders)
        gone = sorted(name for name in known - here if name.startswith(folders))
        async with channels.connect(retriever) as channel:
            # First, or a file under a new name would be known as a duplicate of itself.
            removed = await documents.remove(channel, self._sign_in, self.knowledge_base, gone)
            # Before they are sent: a killed run leaves no document that nobody knows of.
            await asyncio.to_thread(
                record, self.state, self.tenant, self.knowledge_base, known.difference(gone).union(here)
            )
            with progress.bar(self.console, len(self.found.documents)) as report:

                def on_progress(summary: documents.Summary) -> None:
                    begun.set()
                    report(summary)

                summary = await documents.ingest(
                    channel, self._sign_in, self.knowledge_base, self.found.documents, on_progress=on_progress
                )
        summary.removed = removed
        return summary

    def _sign_in(self) -> None:
        configuration.sign_in(self.signer, self.tenant)


def taken(state: State, tenant: str, knowledge_base: str) -> frozenset[str]:
    """Ids of the documents that runs on this state folder took, of which some may be deleted since."""
    return frozenset(_all_taken(state).get(tenant, {}).get(knowledge_base, ()))


def record(state: State, tenant: str, knowledge_base: str, document_ids: Iterable[str]) -> None:
    """Replaces what `taken` gives. Raises OSError."""
    everything = _all_taken(state)
    everything.setdefault(tenant, {})[knowledge_base] = sorted(document_ids)
    files.write(state.documents_file, json.dumps(everything, ensure_ascii=False, indent=1).encode())


def _all_taken(state: State) -> dict[str, dict[str, list[str]]]:
    """By tenant and knowledge base."""
    try:
        everything = json.loads(state.documents_file.read_text(encoding="utf-8"))
        return {
            str(tenant): {str(name): [str(each) for each in ids] for name, ids in bases.items()}
            for tenant, bases in everything.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        logger.warning(
            "%s cannot be understood: documents that were deleted from their folder before this run stay",
            state.documents_file,
        )
        return {}
