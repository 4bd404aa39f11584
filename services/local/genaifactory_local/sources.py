"""Sources of stored documents: the labels that name their documents, and which documents are gone from them."""

from __future__ import annotations

from dataclasses import replace

from genaifactory_pipelines.sources import folder, store
from genaifactory_pipelines.sources.folder import FoundFiles, Source
from genaifactory_pipelines.sources.store import Store, stored


async def labelled(store: Store, found: FoundFiles) -> FoundFiles:
    """The documents under names that no other source's documents have: a folder's name, or more of its path.

    A source that was read before keeps its label, so that its documents keep their ids. Raises FactoryError.
    """
    own: dict[Source, Source] = {}
    for source in found.sources:
        own[source] = replace(source, label=await _label(store, source, {each.label for each in own.values()}))
    return folder.relabelled(found, own)


async def gone(of: Store, found: FoundFiles) -> list[str]:
    """Ids of stored documents that are not in their source any more. Raises FactoryError.

    Documents below a folder that cannot be read are not among them.
    """
    here = {document.document_id for document in found.documents}
    unknown = found.unknown
    return [each for source in found.sources for each in await store.gone(of, source.name, here, unknown)]


async def of_sources(store: Store, names: frozenset[str]) -> list[str]:
    """Ids of stored documents of these sources. Raises FactoryError."""
    return [document.document_id for name in sorted(names) async for document in stored(store, source=name)]


async def count_others(store: Store, names: frozenset[str]) -> int:
    """How many documents of other sources than these are stored. Raises FactoryError."""
    own = [(await store.page(source=name, size=1)).total for name in names]
    return max(0, (await store.page(size=1)).total - sum(own))


async def _label(store: Store, source: Source, taken: set[str]) -> str:
    own = [document.document_id async for document in stored(store, source=source.name)]
    candidates = [label for label in folder.labels(source.path) if label not in taken]
    for label in candidates:
        if any(_belongs(document_id, label, source) for document_id in own):
            return label
    for label in candidates:
        if not await _is_taken(store, source, label):
            return label
    return candidates[-1]


async def _is_taken(store: Store, source: Source, label: str) -> bool:
    """Whether a document of another source is named by the label; one without a source does not count."""
    async for document in stored(store, prefix=label):
        if _belongs(document.document_id, label, source) and document.source not in ("", source.name):
            return True
    return False


def _belongs(document_id: str, label: str, source: Source) -> bool:
    return document_id.startswith(f"{label}/") if source.is_folder else document_id == label
