"""A Qdrant server as vector store: one collection for each index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from genaifactory_common.errors import Unavailable
from genaifactory_retriever.vectors import protocol
from genaifactory_retriever.vectors.protocol import Candidate, Passage, Point, Sparse, Where

_UPSERT_BATCH = 256


class QdrantVectors:
    """Implements vectors.Vectors. The client's own timeout bounds every call."""

    owned = False

    def __init__(self, client: AsyncQdrantClient, *, prefix: str = "genaifactory-") -> None:
        """prefix: of collection names, so that a server may hold other collections."""
        self._client = client
        self._prefix = prefix

    async def create(self, index: str, dimensions: int) -> None:
        await self.drop(index)
        name = self._prefix + index
        with _translated():
            await self._client.create_collection(
                name,
                vectors_config={protocol.DENSE: models.VectorParams(size=dimensions, distance=models.Distance.DOT)},
                sparse_vectors_config={protocol.LEXICAL: models.SparseVectorParams()},
            )
            for field in protocol.KEYWORD_FIELDS:
                schema = models.KeywordIndexParams(
                    type=models.KeywordIndexType.KEYWORD, is_tenant=field == protocol.TENANT
                )
                await self._client.create_payload_index(name, field, schema, wait=True)
            await self._client.create_payload_index(
                name, protocol.REVISION, models.PayloadSchemaType.INTEGER, wait=True
            )

    async def open(self, index: str) -> None:
        with _translated():
            if not await self._client.collection_exists(self._prefix + index):
                raise Unavailable(f"The Qdrant server has no collection '{self._prefix + index}'.")

    async def drop(self, index: str) -> None:
        with _translated():
            if await self._client.collection_exists(self._prefix + index):
                await self._client.delete_collection(self._prefix + index)

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        with _translated():
            for begin in range(0, len(points), _UPSERT_BATCH):
                batch = [_to_qdrant(point) for point in points[begin : begin + _UPSERT_BATCH]]
                await self._client.upsert(self._prefix + index, batch, wait=True)

    async def delete(self, index: str, revisions: Iterable[int]) -> None:
        condition = models.FieldCondition(key=protocol.REVISION, match=models.MatchAny(any=sorted(revisions)))
        with _translated():
            await self._client.delete(
                self._prefix + index, models.FilterSelector(filter=models.Filter(must=[condition])), wait=True
            )

    async def search(
        self, index: str, *, dense: list[float] | None, lexical: Sparse | None, where: Where, limit: int
    ) -> list[Candidate]:
        queries = _queries(dense, lexical)
        condition = _filter(where)
        scores = await self._scores(
            index, {name: _request(name, query, condition, limit) for name, query in queries.items()}
        )
        if len(scores) == 2:
            missing = {
                name: sorted(scores[other].keys() - scores[name].keys())
                for name, other in ((protocol.DENSE, protocol.LEXICAL), (protocol.LEXICAL, protocol.DENSE))
            }
            completed = await self._scores(
                index,
                {
                    name: _request(
                        name, queries[name], models.Filter(must=[models.HasIdCondition(has_id=ids)]), len(ids)
                    )
                    for name, ids in missing.items()
                    if ids
                },
            )
            for name, found in completed.items():
                scores[name].update(found)
        ids = sorted({id_ for by_id in scores.values() for id_ in by_id})
        dense_scores, lexical_scores = scores.get(protocol.DENSE, {}), scores.get(protocol.LEXICAL, {})
        return [Candidate(id_, dense_scores.get(id_, 0.0), lexical_scores.get(id_, 0.0)) for id_ in ids]

    async def passages(self, index: str, ids: Sequence[int]) -> dict[int, Passage]:
        with _translated():
            records = await self._client.retrieve(self._prefix + index, list(ids), with_payload=True)
        return {int(record.id): protocol.from_payload(record.payload or {}) for record in records}

    async def points(self, index: str, ids: Sequence[int]) -> list[Point]:
        with _translated():
            records = await self._client.retrieve(self._prefix + index, list(ids), with_payload=True, with_vectors=True)
        return [_from_qdrant(record) for record in records]

    async def count(self, index: str) -> int:
        with _translated():
            return (await self._client.count(self._prefix + index, exact=True)).count

    async def close(self) -> None:
        await self._client.close()

    async def _scores(self, index: str, requests: dict[str, models.QueryRequest]) -> dict[str, dict[int, float]]:
        if not requests:
            return {}
        with _translated():
            responses = await self._client.query_batch_points(self._prefix + index, list(requests.values()))
        return {
            name: {int(hit.id): hit.score for hit in response.points}
            for name, response in zip(requests, responses, strict=True)
        }


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (ApiException, QdrantException, grpc.RpcError, httpx.HTTPError, ConnectionError) as error:
        raise Unavailable(f"The Qdrant server failed: {type(error).__name__}.", retry_after_seconds=1) from error


def _queries(dense: list[float] | None, lexical: Sparse | None) -> dict[str, Any]:
    queries: dict[str, Any] = {}
    if dense is not None:
        queries[protocol.DENSE] = dense
    if lexical is not None:
        queries[protocol.LEXICAL] = models.SparseVector(indices=lexical.indices, values=lexical.values)
    return queries


def _request(name: str, query: Any, condition: models.Filter, limit: int) -> models.QueryRequest:
    return models.QueryRequest(query=query, using=name, filter=condition, limit=limit)


def _filter(where: Where) -> models.Filter:
    def equals(field: str, value: str) -> models.FieldCondition:
        return models.FieldCondition(key=field, match=models.MatchValue(value=value))

    allowed: list[Any] = [models.IsEmptyCondition(is_empty=models.PayloadField(key=protocol.GROUPS))]
    if where.groups:
        allowed.append(models.FieldCondition(key=protocol.GROUPS, match=models.MatchAny(any=list(where.groups))))
    must: list[Any] = [equals(protocol.TENANT, where.tenant), models.Filter(should=allowed)]
    if where.language:
        must.append(equals(protocol.LANGUAGE, where.language))
    must.extend(equals(protocol.METADATA, protocol.metadata_value(key, value)) for key, value in where.metadata)
    must_not: list[Any] = []
    if where.hidden:
        must_not.append(models.FieldCondition(key=protocol.REVISION, match=models.MatchAny(any=sorted(where.hidden))))
    return models.Filter(must=must, must_not=must_not)


def _to_qdrant(point: Point) -> models.PointStruct:
    return models.PointStruct(
        id=point.id,
        vector={
            protocol.DENSE: point.dense,
            protocol.LEXICAL: models.SparseVector(indices=point.lexical.indices, values=point.lexical.values),
        },
        payload=protocol.to_payload(point.passage),
    )


def _from_qdrant(record: models.Record) -> Point:
    vector: Any = record.vector
    sparse = vector[protocol.LEXICAL]
    return Point(
        int(record.id),
        list(vector[protocol.DENSE]),
        Sparse(list(sparse.indices), list(sparse.values)),
        protocol.from_payload(record.payload or {}),
    )
