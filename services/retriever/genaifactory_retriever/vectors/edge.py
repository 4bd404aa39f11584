"""The embedded store: Qdrant Edge in this process, one folder for each index."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import qdrant_edge as qdrant

from genaifactory_common.errors import Unavailable
from genaifactory_common.space import require_free
from genaifactory_retriever.vectors import mapped, protocol
from genaifactory_retriever.vectors.protocol import Candidate, Passage, Point, Sparse, Where

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# Edge holds the interpreter's lock during a call: small batches keep the event loop's pauses to a few milliseconds.
_UPSERT_BATCH = 64
OPENING_BYTES = 8 << 20
"""Free space needed to open an index, which may have to replay its log."""
_CREATING_BYTES = 32 << 20
"""Free space needed to create an index, of 20 MiB, most of it for files that grow later."""
# Upper bounds in bytes of a file's growth for each point, and for each of its terms and characters.
_POINT_BYTES, _TERM_BYTES, _CHARACTER_BYTES = 1536, 16, 8
_CHANGE_BYTES, _DELETION_BYTES = 6144, 64 << 10
# Prefix of a folder that is being deleted; no index's name begins with a dot.
_DROPPED = ".dropped-"
# A payload field for the check of `_require_writes`; no passage has it.
_MARK = "opened"
# Exact below this many points; above, HNSW would need an optimizer run, which holds the lock for seconds.
_EXACT = qdrant.SearchParams(exact=True)


class EdgeVectors:
    """Implements vectors.Vectors. Writes run on one thread, searches beside them."""

    owned = True

    def __init__(self, folder: Path, *, search_threads: int) -> None:
        """folder: holds the indexes. Deletes what a killed process left half deleted in it. Blocks."""
        self._folder = folder
        for left in folder.glob(f"{_DROPPED}*"):
            shutil.rmtree(left)
        self._shards: dict[str, qdrant.EdgeShard] = {}
        self._searchers = ThreadPoolExecutor(search_threads, thread_name_prefix="edge-search")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="edge-write")

    async def create(self, index: str, dimensions: int) -> None:
        await self._write(self._create, index, dimensions)

    async def open(self, index: str) -> None:
        await self._write(self._open, index)

    async def drop(self, index: str) -> None:
        await self._write(self._drop, index)

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        if not points:
            return
        shard = self._shard(index)
        for begin in range(0, len(points), _UPSERT_BATCH):
            batch = points[begin : begin + _UPSERT_BATCH]
            operation = qdrant.UpdateOperation.upsert_points([_to_edge(point) for point in batch])
            await self._write(self._update, index, shard, operation, sum(map(_growth, batch)))
        await self._write(shard.flush)

    async def delete(self, index: str, revisions: Iterable[int]) -> None:
        shard = self._shard(index)
        theirs = qdrant.FieldCondition(protocol.REVISION, match=qdrant.MatchAny(sorted(revisions)))
        those = qdrant.Filter(must=[theirs])
        operation = qdrant.UpdateOperation.delete_points_by_filter(those)
        await self._write(self._update, index, shard, operation, _DELETION_BYTES)
        await self._write(shard.flush)
        if await self._read(shard.count, qdrant.CountRequest(filter=those, exact=True)):
            raise Unavailable(f"The index '{index}' is damaged: a deletion has no effect. The next start rebuilds it.")

    async def search(
        self, index: str, *, dense: list[float] | None, lexical: Sparse | None, where: Where, limit: int
    ) -> list[Candidate]:
        shard = self._shard(index)
        return await self._read(_search, shard, dense, lexical, where, limit)

    async def passages(self, index: str, ids: Sequence[int]) -> dict[int, Passage]:
        shard = self._shard(index)
        records = await self._read(lambda: shard.retrieve(list(ids), with_payload=True, with_vector=False))
        return {int(record.id): protocol.from_payload(record.payload or {}) for record in records}

    async def points(self, index: str, ids: Sequence[int]) -> list[Point]:
        shard = self._shard(index)
        records = await self._read(lambda: shard.retrieve(list(ids), with_payload=True, with_vector=True))
        return [_from_edge(record) for record in records]

    async def count(self, index: str) -> int:
        shard = self._shard(index)
        return await self._read(shard.count, qdrant.CountRequest(exact=True))

    async def close(self) -> None:
        await self._write(self._close)
        self._searchers.shutdown(wait=False)
        self._writer.shutdown(wait=False)

    def _update(self, index: str, shard: qdrant.EdgeShard, operation: qdrant.UpdateOperation, each_bytes: int) -> None:
        mapped.make_room(self._folder / index, each_bytes)
        shard.update(operation)

    def _create(self, index: str, dimensions: int) -> None:
        require_free(self._folder, _CREATING_BYTES)
        self._drop(index)
        folder = self._folder / index
        folder.mkdir(parents=True)
        config = qdrant.EdgeConfig(
            vectors={protocol.DENSE: qdrant.EdgeVectorParams(dimensions, qdrant.Distance.Dot)},
            sparse_vectors={protocol.LEXICAL: qdrant.EdgeSparseVectorParams()},
            max_search_threads=1,
        )
        shard = qdrant.EdgeShard.create(str(folder), config)
        for field in protocol.KEYWORD_FIELDS:
            shard.update(qdrant.UpdateOperation.create_field_index(field, qdrant.PayloadSchemaType.Keyword))
        shard.update(qdrant.UpdateOperation.create_field_index(protocol.REVISION, qdrant.PayloadSchemaType.Integer))
        shard.flush()
        self._shards[index] = shard

    def _open(self, index: str) -> None:
        if index not in self._shards:
            require_free(self._folder, OPENING_BYTES)
            shard = qdrant.EdgeShard.load(str(self._folder / index))
            try:
                self._require_writes(index, shard)
            except BaseException:
                shard.close()
                raise
            self._shards[index] = shard

    def _require_writes(self, index: str, shard: qdrant.EdgeShard) -> None:
        """Raises Unavailable when a change of a stored point has no effect.

        After its write-ahead log is lost, Edge numbers changes from the beginning again and silently ignores those with
        a number below the point's last one: deleted points would stay.
        """
        stored, _ = shard.scroll(qdrant.ScrollRequest(limit=1, with_payload=False, with_vector=False))
        if not stored:
            return
        mark = secrets.token_hex(8)
        self._update(index, shard, qdrant.UpdateOperation.set_payload([stored[0].id], {_MARK: mark}), _CHANGE_BYTES)
        (found,) = shard.retrieve([stored[0].id], with_payload=True, with_vector=False)
        if (found.payload or {}).get(_MARK) != mark:
            raise Unavailable("A change of a stored point has no effect.")

    def _drop(self, index: str) -> None:
        shard = self._shards.pop(index, None)
        if shard is not None:
            shard.close()
        folder = self._folder / index
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
        else:
            # Renamed first, so that a process that is killed meanwhile leaves no folder that looks like an index.
            doomed = folder.with_name(_DROPPED + folder.name)
            shutil.rmtree(doomed, ignore_errors=True)
            folder.replace(doomed)
            shutil.rmtree(doomed)

    def _close(self) -> None:
        for shard in self._shards.values():
            shard.flush()
            shard.close()
        self._shards.clear()

    def _shard(self, index: str) -> qdrant.EdgeShard:
        shard = self._shards.get(index)
        if shard is None:
            raise Unavailable(f"The index '{index}' is not open.")
        return shard

    async def _read(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        with _translated():
            return await asyncio.get_running_loop().run_in_executor(self._searchers, work, *arguments)

    async def _write(self, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        with _translated():
            return await asyncio.get_running_loop().run_in_executor(self._writer, work, *arguments)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Edge raises plain Exceptions with a message, and panics in Rust on some damaged files; any other type is a
        # fault of our code and passes.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise Unavailable(f"The vector store failed: {error}") from error


def _search(
    shard: qdrant.EdgeShard, dense: list[float] | None, lexical: Sparse | None, where: Where, limit: int
) -> list[Candidate]:
    condition = _filter(where)
    requests = {
        name: qdrant.QueryRequest(
            limit,
            query=qdrant.Query.Nearest(vector, name),
            filter=condition,
            params=_EXACT if name == protocol.DENSE else None,
        )
        for name, vector in _queries(dense, lexical).items()
    }
    found = shard.query_batch(qdrant.QueryBatchRequest(list(requests.values())))
    scores = {name: {int(hit.id): hit.score for hit in hits} for name, hits in zip(requests, found, strict=True)}
    if len(scores) == 2:
        _complete(shard, _queries(dense, lexical), scores)
    ids = sorted({id_ for by_id in scores.values() for id_ in by_id})
    dense_scores, lexical_scores = scores.get(protocol.DENSE, {}), scores.get(protocol.LEXICAL, {})
    return [Candidate(id_, dense_scores.get(id_, 0.0), lexical_scores.get(id_, 0.0)) for id_ in ids]


def _complete(shard: qdrant.EdgeShard, queries: dict[str, Any], scores: dict[str, dict[int, float]]) -> None:
    """Adds each method's scores for the points that only the other found."""
    names, requests = [], []
    for name, other in ((protocol.DENSE, protocol.LEXICAL), (protocol.LEXICAL, protocol.DENSE)):
        missing = sorted(scores[other].keys() - scores[name].keys())
        if missing:
            names.append(name)
            requests.append(
                qdrant.QueryRequest(
                    len(missing),
                    query=qdrant.Query.Nearest(queries[name], name),
                    filter=qdrant.Filter(must=[qdrant.HasIdCondition(set(missing))]),
                    params=_EXACT if name == protocol.DENSE else None,
                )
            )
    if requests:
        for name, hits in zip(names, shard.query_batch(qdrant.QueryBatchRequest(requests)), strict=True):
            scores[name].update({int(hit.id): hit.score for hit in hits})


def _queries(dense: list[float] | None, lexical: Sparse | None) -> dict[str, Any]:
    queries: dict[str, Any] = {}
    if dense is not None:
        queries[protocol.DENSE] = dense
    if lexical is not None:
        queries[protocol.LEXICAL] = qdrant.SparseVector(lexical.indices, lexical.values)
    return queries


def _filter(where: Where) -> qdrant.Filter:
    def equals(field: str, value: str) -> qdrant.FieldCondition:
        return qdrant.FieldCondition(field, match=qdrant.MatchValue(value))

    allowed: list[Any] = [qdrant.IsEmptyCondition(protocol.GROUPS)]
    if where.groups:
        allowed.append(qdrant.FieldCondition(protocol.GROUPS, match=qdrant.MatchAny(list(where.groups))))
    must: list[Any] = [equals(protocol.TENANT, where.tenant), qdrant.Filter(should=allowed)]
    if where.language:
        must.append(equals(protocol.LANGUAGE, where.language))
    must.extend(equals(protocol.METADATA, protocol.metadata_value(key, value)) for key, value in where.metadata)
    must_not: list[Any] = []
    if where.hidden:
        must_not.append(qdrant.FieldCondition(protocol.REVISION, match=qdrant.MatchAny(sorted(where.hidden))))
    return qdrant.Filter(must=must, must_not=must_not)


def _to_edge(point: Point) -> qdrant.Point:
    return qdrant.Point(
        point.id,
        {
            protocol.DENSE: point.dense,
            protocol.LEXICAL: qdrant.SparseVector(point.lexical.indices, point.lexical.values),
        },
        protocol.to_payload(point.passage),
    )


def _growth(point: Point) -> int:
    passage = point.passage
    characters = sum(map(len, (passage.text, passage.title, passage.uri, passage.document_id, *passage.headings)))
    characters += sum(len(key) + len(value) for key, value in passage.metadata.items())
    characters += sum(map(len, passage.allowed_groups))
    vectors = protocol.COMPONENT_BYTES * len(point.dense) + _TERM_BYTES * len(point.lexical.indices)
    return _POINT_BYTES + vectors + _CHARACTER_BYTES * characters


def _from_edge(record: qdrant.Record) -> Point:
    vector: Any = record.vector
    passage = protocol.from_payload(record.payload or {})
    try:
        dense, sparse = vector[protocol.DENSE], vector[protocol.LEXICAL]
    except (KeyError, TypeError):
        raise Unavailable("The vector store holds a passage without its vectors.") from None
    return Point(int(record.id), list(dense), Sparse(list(sparse.indices), list(sparse.values)), passage)
