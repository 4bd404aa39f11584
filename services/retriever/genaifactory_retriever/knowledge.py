"""One knowledge base: atomic writes, and versioned indexes beside each other.

Every write goes into every open index version, so all versions hold the same documents, and a swap in either direction
loses none. The order of a write is: reserve revisions, hide them, write their points, commit (`library`), show the new
and hide the old, and, when no search reads the old ones any more, delete the old points.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from genaifactory_common import background, specs
from genaifactory_common.errors import Conflict, FactoryError, OutOfSpace, Unavailable
from genaifactory_retriever import catalogue, duplicates, versions
from genaifactory_retriever.embedders.protocol import Embedder
from genaifactory_retriever.encoding import Encoded, Encoder, Encoding
from genaifactory_retriever.library import Library
from genaifactory_retriever.snapshots import Snapshot, Snapshots
from genaifactory_retriever.stored import OPEN_STATES, Contents, Index, Known, Put, State, StoredDocument
from genaifactory_retriever.vectors.protocol import COMPONENT_BYTES, Point, Vectors
from genaifactory_retriever.versions import Progress, index_name

_Key = tuple[str, str, Encoding]
"""Tenant, document id and encoding."""

logger = logging.getLogger(__name__)

_PASSAGE_BYTES = 3584
"""Of one passage on disk, with its payload and log, without its vector of an embedder."""
_BUILD_BATCH = 16
"""Documents that a build adds in one commit."""


@dataclass(frozen=True)
class EncodedDocument:
    """A document ready to be written, in each encoding that was in use when it was prepared."""

    document: StoredDocument
    encoded: Mapping[Encoding, Encoded]

    @property
    def growth_bytes(self) -> int:
        """Estimate of the disk space that it needs, in the library and as vectors."""
        vectors = [len(passage.dense) for encoded in self.encoded.values() for passage in encoded.passages]
        return 4 * len(self.document.text) + len(vectors) * _PASSAGE_BYTES + sum(vectors) * COMPONENT_BYTES


@dataclass(frozen=True)
class Written:
    """The outcome of writing one document."""

    outcome: str
    """'added', 'replaced', 'unchanged', 'duplicate', or 'hidden': nothing was written, since the caller may not see the
    stored document of this id."""
    passages: int


class KnowledgeBase:
    """An open knowledge base. One object for each name, in one process, on one event loop."""

    def __init__(
        self,
        name: str,
        library: Library,
        vectors: Vectors,
        encoder: Encoder,
        embedders: dict[int, Embedder],
        snapshots: Snapshots,
    ) -> None:
        """embedders: of each open version, by its id."""
        self.name = name
        self._library = library
        self._vectors = vectors
        self._encoder = encoder
        self._embedders = embedders
        self._writing = asyncio.Lock()
        self._building = False
        # Whether duplicates may be left without passages; a process before this one may have left some.
        self._unpromoted = True
        self.snapshots = snapshots

    @classmethod
    async def open(
        cls, spec: specs.KnowledgeBase, library: Library, vectors: Vectors, encoder: Encoder
    ) -> KnowledgeBase:
        """Opens the stored versions and cleans up after a process that was killed; creates the first version if needed.

        A damaged index on this process's own disk is rebuilt from the stored documents.
        """
        indexes = await library.run(library.indexes, spec.name)
        # No build runs yet: these were left by a process that was killed.
        left: dict[int, State] = {index.id: "failed" for index in indexes if index.state == "building"}
        await library.run(library.set_states, left)
        for index in indexes:
            if index.state not in OPEN_STATES or index.id in left:
                await vectors.drop(index_name(index))  # also those that a killed process had yet to delete
        indexes = [index for index in indexes if index.state in OPEN_STATES and index.id not in left]
        embedders = {index.id: await versions.embedder_of(index, spec, library, encoder.embedders) for index in indexes}
        opened = {index.id: await versions.open_or_create(index, embedders[index.id], vectors) for index in indexes}
        damaged = {index_id: problem for index_id, problem in opened.items() if problem is not None}
        if not any(index.state == "active" for index in indexes):
            embedder = await encoder.embedders.load(spec.embedder)
            first = await versions.create(spec, embedder, library, vectors, "")
            embedders[first.id] = embedder
            serving: dict[int, State] = {first.id: "active"}
            await library.run(library.set_states, serving)
            indexes = [replace(first, state="active"), *indexes]
        active = next(index for index in indexes if index.state == "active")
        unfinished = await library.run(library.unfinished, spec.name)
        self = cls(
            spec.name,
            library,
            vectors,
            encoder,
            embedders,
            Snapshots(Snapshot(active, tuple(indexes), frozenset(unfinished))),
        )
        await self._repair(damaged)
        return self

    # Writing

    def encodings(self) -> set[Encoding]:
        """Those of the open versions: a document is encoded in each of them."""
        return {self.encoding(index) for index in self.snapshots.current.indexes}

    def encoding(self, index: Index) -> Encoding:
        """Of an open version, and of any version of a snapshot while it is held."""
        return Encoding(index.chunk_tokens, index.overlap_tokens, self._embedders[index.id])

    async def write(self, batch: Sequence[EncodedDocument], groups: tuple[str, ...] | None = None) -> list[Written]:
        """Writes documents of different ids; all of them become visible at once. Raises FactoryError.

        A document with an unchanged source is skipped; one with the content of another is stored without passages.
        groups: of the caller; documents that it may not see are not replaced. None: it may see all of its tenant's.
        """
        return await background.to_the_end(self._write(batch, groups))

    async def delete(
        self, tenant: str, document_ids: Iterable[str], groups: tuple[str, ...] | None = None
    ) -> frozenset[str]:
        """Removes documents from every version; returns the ids of those that were stored.

        groups: of the caller; documents that it may not see are left. None: it may see every document of the tenant.
        """
        return await background.to_the_end(self._delete(tenant, tuple(dict.fromkeys(document_ids)), groups))

    async def is_unchanged(self, tenant: str, document_id: str, source_hash: str) -> Written | None:
        """The outcome for a document that is stored with this source; None when it is not."""
        known = await self._known(tenant, document_id)
        return self._unchanged(known) if known is not None and known.source_hash == source_hash else None

    async def _write(self, batch: Sequence[EncodedDocument], groups: tuple[str, ...] | None) -> list[Written]:
        async with self._writing:
            keys = [(p.document.tenant, p.document.document_id) for p in batch]
            known = [await self._known(*key) for key in keys]
            differing = [
                (key, k)
                for key, p, k in zip(keys, batch, known, strict=True)
                if k is None or k.source_hash != p.document.source_hash
            ]
            hidden = {
                (tenant, document_id)
                for (tenant, document_id), k in differing
                if k is not None and not await self._visible(tenant, groups, [document_id])
            }
            changed = {key for key, _ in differing} - hidden
            written: list[Written] = []
            puts: list[tuple[StoredDocument, bool]] = []
            first_of: dict[tuple[str, str], str] = {}
            for prepared, before in zip(batch, known, strict=True):
                document = prepared.document
                if before is not None and before.source_hash == document.source_hash:
                    written.append(self._unchanged(before))
                    continue
                if (document.tenant, document.document_id) in hidden:
                    written.append(Written("hidden", 0))
                    continue
                same = await self._same_content(document.tenant, document.content_hash)
                stays = any(k.indexed and (document.tenant, k.document_id) not in changed for k in same)
                first = first_of.setdefault((document.tenant, document.content_hash), document.document_id)
                indexed = not stays and first == document.document_id
                puts.append((document, indexed))
                if indexed:
                    written.append(Written("added" if before is None else "replaced", self._passages(prepared)))
                else:
                    written.append(Written("duplicate", 0))
            await self._apply(puts, [], {_key(p.document, c): e for p in batch for c, e in p.encoded.items()})
            return written

    async def _delete(self, tenant: str, document_ids: Sequence[str], groups: tuple[str, ...] | None) -> frozenset[str]:
        async with self._writing:
            removed = await self._visible(tenant, groups, document_ids)
            await self._apply([], [(tenant, document_id) for document_id in removed], {})
            return frozenset(removed)

    async def _visible(self, tenant: str, groups: tuple[str, ...] | None, document_ids: Sequence[str]) -> list[str]:
        return await self._library.run(catalogue.visible, self._library, self.name, tenant, groups, document_ids)

    async def _known(self, tenant: str, document_id: str) -> Known | None:
        return await self._library.run(self._library.known, self.name, tenant, document_id)

    async def _same_content(self, tenant: str, content_hash: str) -> list[Known]:
        return await self._library.run(self._library.same_content, self.name, tenant, content_hash)

    @staticmethod
    def _unchanged(known: Known) -> Written:
        return Written("unchanged" if known.indexed else "duplicate", 0)

    def _passages(self, prepared: EncodedDocument) -> int:
        encoded = prepared.encoded.get(self.encoding(self.snapshots.current.active))
        return len(encoded.passages) if encoded else 0

    async def _apply(
        self,
        puts: list[tuple[StoredDocument, bool]],
        removed: list[tuple[str, str]],
        encoded: dict[_Key, Encoded],
    ) -> None:
        """Does one whole write. puts: documents, and whether they get passages. Needs the lock.

        encoded: missing entries are added.
        """
        puts = [*puts, *await self._promoted(puts, removed, encoded)]
        if not puts and not removed:
            return
        indexes = self.snapshots.current.indexes
        revisions = await self._library.run(self._library.reserve, self.name, len(puts))
        try:
            # Revisions of an earlier write that no sweep could delete stay hidden.
            hidden = self.snapshots.current.hidden.union(revisions)
            await self.snapshots.publish(replace(self.snapshots.current, hidden=hidden))
            contents: dict[int, dict[int, Contents]] = {revision: {} for revision in revisions}
            for index in indexes:
                points: list[Point] = []
                for revision, (document, indexed) in zip(revisions, puts, strict=True):
                    if indexed:
                        passages = await self._passages_of(document, self.encoding(index), encoded)
                        points.extend(passages.points(revision, document))
                        contents[revision][index.id] = passages.contents
                await self._vectors.upsert(index_name(index), points)
            ready = [
                Put(revision, document, contents[revision], indexed)
                for revision, (document, indexed) in zip(revisions, puts, strict=True)
            ]
            await self._library.run(self._library.commit, self.name, ready, removed)
        finally:
            # Deletes the reserved revisions after a failure, the replaced ones after a success.
            try:
                await self._sweep()
            except Unavailable as error:  # they stay hidden until the next write sweeps; this write's outcome is final
                logger.warning("could not delete old passages of %s, which stay hidden: %s", self.name, error.message)

    async def _passages_of(self, document: StoredDocument, encoding: Encoding, encoded: dict[_Key, Encoded]) -> Encoded:
        key = _key(document, encoding)
        if key not in encoded:
            encoded[key] = await self._encoder.encode(document, encoding)
        return encoded[key]

    async def _promoted(
        self, puts: list[tuple[StoredDocument, bool]], removed: list[tuple[str, str]], encoded: dict[_Key, Encoded]
    ) -> list[tuple[StoredDocument, bool]]:
        """Duplicates that get passages with this write, encoded.

        Those that cannot be embedded now are left to a later write: a removal must not depend on an embedder.
        """
        due = await self._library.run(
            partial(duplicates.due, self._library, self.name, puts, removed, left=self._unpromoted)
        )
        self._unpromoted = len(due) >= duplicates.MOST
        for number, document in enumerate(due):
            try:
                for index in self.snapshots.current.indexes:
                    await self._passages_of(document, self.encoding(index), encoded)
            except FactoryError as error:
                logger.error("%d duplicates in %s are without passages: %s", len(due) - number, self.name, error)
                self._unpromoted = True
                return [(each, True) for each in due[:number]]
        return [(each, True) for each in due]

    async def _sweep(self) -> None:
        """Shows live revisions, and deletes the points of others once no search reads them. Needs the lock."""
        garbage = frozenset(await self._library.run(self._library.unfinished, self.name))
        await self.snapshots.publish(replace(self.snapshots.current, hidden=garbage))
        if garbage:
            for index in self.snapshots.current.indexes:
                await self._vectors.delete(index_name(index), garbage)
            await self._library.run(self._library.forget_revisions, garbage)
            await self.snapshots.publish(replace(self.snapshots.current, hidden=frozenset()))

    # Opening

    async def _repair(self, damaged: dict[int, str]) -> None:
        """Sweeps, and rebuilds indexes that cannot be read or lack passages. For `open`, before any search.

        damaged: the problem of each index already found damaged, by id.
        """
        try:
            await self._sweep()
        except Unavailable as error:
            if not self._vectors.owned or isinstance(error, OutOfSpace):
                raise
            damaged = {index.id: error.message for index in self.snapshots.current.indexes} | damaged
        if not self._vectors.owned:
            return
        for index in self.snapshots.current.indexes:
            if isinstance(self._embedders[index.id], versions.LostEmbedder):
                continue
            problem = damaged.get(index.id) or await versions.problem(index, self._library, self._vectors)
            if problem is not None:
                await versions.rebuild(
                    index, problem, self._library, self._vectors, self._encoder, self.encoding(index)
                )
        if damaged:
            await self._sweep()

    # Index versions

    async def build(self, spec: specs.KnowledgeBase, idempotency_key: str) -> AsyncGenerator[Progress, None]:
        """Builds a version beside the active one from all stored documents and checks it. It is cancelled with its
        caller, and the same key starts it again. Raises Conflict, InvalidArgument about chunk_tokens, Unavailable.
        """
        known = await versions.built(self.name, idempotency_key, self._library)
        if known is not None:
            passages = await self._library.run(self._library.all_passages, known.id)
            yield Progress(known.version, passages, passages, known.state)
            return
        if self._building:
            raise Conflict(f"Another build of '{self.name}' is running; wait for its end.")
        self._building = True
        try:
            embedder = await self._encoder.embedders.load(spec.embedder)
            versions.require_length(spec, embedder)
            async with self._writing:
                spare = [index for index in self.snapshots.current.indexes if index.state == "ready"]
                await self._retire(spare, {index.id: "dropped" for index in spare})
                index = await versions.create(spec, embedder, self._library, self._vectors, idempotency_key)
                self._embedders[index.id] = embedder
            try:
                async with self._writing:
                    current = self.snapshots.current
                    revisions = await self._library.run(self._library.indexed_revisions, self.name)
                    total = await self._library.run(self._library.all_passages, current.active.id)
                    # From here on writes go into the new version too; documents stored before are copied below.
                    await self.snapshots.publish(replace(current, indexes=(index, *current.indexes)))
                yield Progress(index.version, 0, total, "building")
                done = 0
                for begin in range(0, len(revisions), _BUILD_BATCH):
                    done += await self._copy(index, revisions[begin : begin + _BUILD_BATCH])
                    yield Progress(index.version, done, max(total, done), "building")
                doubtful = await versions.unequal(index, revisions, self._library, self._vectors)
                async with self._writing:
                    # Documents that were removed meanwhile are no problem, and no others are now.
                    unequal = await versions.unequal(index, list(doubtful), self._library, self._vectors)
                    problem = next(iter(unequal.values()), None)
                    problem = problem or await versions.problem(index, self._library, self._vectors)
                    if problem is None:
                        await self._set_states({index.id: "ready"})
                if problem is not None:
                    raise _CheckFailed(problem)
            except BaseException as error:
                async with self._writing:
                    await self._retire([index], {index.id: "failed"})
                if not isinstance(error, _CheckFailed):
                    raise
                logger.error("index version %s of %s failed its check: %s", index.version, self.name, error)
                yield Progress(index.version, done, max(total, done), "failed", error.message)
                return
            yield Progress(index.version, done, done, "ready")
        finally:
            self._building = False

    async def swap(self, version: str) -> tuple[str, str]:
        """Makes a version the active one in one commit; returns it and the previous one.

        Raises NotFound, Conflict, and Unavailable for a version whose embedder is lost.
        """
        async with self._writing:
            current = self.snapshots.current
            target = current.serving(version)
            if target.id == current.active.id:
                previous = next((index.version for index in current.indexes if index.state == "previous"), "")
                return version, previous
            versions.require(self._embedders[target.id])
            dropped = [i for i in current.indexes if i.state == "previous" and i.id != target.id]
            states: dict[int, State] = {current.active.id: "previous", target.id: "active"}
            states.update({index.id: "dropped" for index in dropped})
            await self._retire(dropped, states)
            return version, current.active.version

    async def drop(self, version: str) -> None:
        """Deletes a version that does not serve. Raises NotFound, Conflict."""
        async with self._writing:
            target = self.snapshots.current.serving(version)
            if target.state == "active":
                raise Conflict(
                    f"The index version '{version}' serves; activate another one before it is dropped.",
                    field="index_version",
                )
            await self._retire([target], {target.id: "dropped"})

    async def _copy(self, index: Index, revisions: Sequence[int]) -> int:
        """Adds the documents that are still live to a version that is being built. Returns the number of passages."""
        documents = [(r, await self._library.run(self._library.load, r)) for r in revisions]
        encoded = await asyncio.gather(
            *(self._encoder.encode(document, self.encoding(index)) for _, document in documents if document is not None)
        )
        present = [(revision, document) for revision, document in documents if document is not None]
        async with self._writing:
            entries = []
            for (revision, document), passages in zip(present, encoded, strict=True):
                if await self._library.run(self._library.load, revision) is None:
                    continue  # replaced or removed meanwhile, by a write that went into this version too
                await self._vectors.upsert(index_name(index), passages.points(revision, document))
                entries.append((revision, document.tenant, passages.contents))
            await self._library.run(self._library.add_contents, index.id, entries)
        return sum(contents.passages for _, _, contents in entries)

    async def _set_states(self, states: Mapping[int, State]) -> None:
        """Commits new states and publishes them. Needs the lock."""
        await self._library.run(self._library.set_states, states)
        current = self.snapshots.current
        moved = [replace(i, state=states.get(i.id, i.state)) for i in current.indexes]
        indexes = tuple(index for index in moved if index.state in OPEN_STATES)
        active = next(index for index in indexes if index.state == "active")
        await self.snapshots.publish(replace(current, active=active, indexes=indexes))

    async def _retire(self, indexes: Sequence[Index], states: Mapping[int, State]) -> None:
        """Sets `states`, and deletes `indexes` once no search reads them. Needs the lock."""
        if not states:
            return
        await self._set_states(states)
        for index in indexes:
            del self._embedders[index.id]
            await self._vectors.drop(index_name(index))


def _key(document: StoredDocument, encoding: Encoding) -> _Key:
    return document.tenant, document.document_id, encoding


class _CheckFailed(FactoryError):
    """A built version failed its check; the message names the problem."""
