"""Sources of stored documents: the labels that name their documents, and which documents are gone from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import grpc.aio

from genaifactory.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from genaifactory_common import formats
from genaifactory_local import documents, finding, limited
from genaifactory_local.catalogue import PAGE, stored
from genaifactory_local.finding import FoundFiles, Reason, Skipped, Source

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Store:
    """A knowledge base of a running platform, for the holder of a key. Every method raises FactoryError."""

    channel: grpc.aio.Channel
    """To the gateway, with the key."""
    knowledge_base: str

    async def page(
        self, *, prefix: str = "", source: str = "", size: int = PAGE, after: str = ""
    ) -> gateway_pb2.ListDocumentsResponse:
        """Documents by id, with how many there are in all."""
        request = gateway_pb2.ListDocumentsRequest(
            knowledge_base=self.knowledge_base, prefix=prefix, source=source, page_size=size, page_token=after
        )
        return await limited.unary(self._stub.ListDocuments, request, timeout_seconds=_TIMEOUT_SECONDS)

    async def get(self, document_id: str, characters: int) -> gateway_pb2.GetDocumentResponse:
        """One document, with the beginning of its text. Raises NotFound."""
        request = gateway_pb2.GetDocumentRequest(
            knowledge_base=self.knowledge_base, document_id=document_id, max_characters=characters
        )
        return await limited.unary(self._stub.GetDocument, request, timeout_seconds=_TIMEOUT_SECONDS)

    async def remove(self, document_ids: list[str]) -> list[str]:
        """Removes documents; returns those of the ids that name none."""
        return await documents.remove(self.channel, self.knowledge_base, document_ids)

    @property
    def _stub(self) -> gateway_pb2_grpc.GatewayServiceAsyncStub:
        return gateway_pb2_grpc.GatewayServiceStub(self.channel)


async def labelled(store: Store, found: FoundFiles) -> FoundFiles:
    """The documents under names that no other source's documents have: a folder's name, or more of its path.

    A source that was read before keeps its label, so that its documents keep their ids. Raises FactoryError.
    """
    own: dict[Source, Source] = {}
    for source in found.sources:
        own[source] = replace(source, label=await _label(store, source, {each.label for each in own.values()}))
    there = [replace(document, source=own[document.source]) for document in found.documents]
    skipped = [replace(each, source=own[each.source]) for each in found.skipped]
    long = [each for each in there if len(each.document_id) > formats.MAX_ID_CHARACTERS]
    skipped += [Skipped(each.source, each.below, Reason.LONG) for each in long]
    there = sorted((each for each in there if each not in long), key=lambda each: each.document_id)
    return FoundFiles(tuple(there), tuple(skipped), tuple(own.values()))


async def gone(store: Store, found: FoundFiles) -> list[str]:
    """Ids of stored documents that are not in their source any more. Raises FactoryError.

    Documents below a folder that cannot be read are not among them.
    """
    here = {document.document_id for document in found.documents}
    unknown = tuple(each.name for each in found.skipped if each.reason is Reason.UNREADABLE)
    return [
        document.document_id
        for source in found.sources
        async for document in stored(store, source=source.name)
        if document.document_id not in here and not document.document_id.startswith(unknown)
    ]


async def of_sources(store: Store, names: frozenset[str]) -> list[str]:
    """Ids of stored documents of these sources. Raises FactoryError."""
    return [document.document_id for name in sorted(names) async for document in stored(store, source=name)]


async def count_others(store: Store, names: frozenset[str]) -> int:
    """How many documents of other sources than these are stored. Raises FactoryError."""
    own = [(await store.page(source=name, size=1)).total for name in names]
    return max(0, (await store.page(size=1)).total - sum(own))


async def _label(store: Store, source: Source, taken: set[str]) -> str:
    own = [document.document_id async for document in stored(store, source=source.name)]
    candidates = [label for label in finding.labels(source.path) if label not in taken]
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
