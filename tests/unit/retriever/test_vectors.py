"""The contract of a vector store, for both implementations.

The Qdrant server's client runs here in its own local mode: the same calls and filters, without a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from genaifactory_common.errors import Unavailable
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.vectors.protocol import Passage, Point, Sparse, Vectors, Where, point_id
from genaifactory_retriever.vectors.qdrant import QdrantVectors

ACME = Where("acme", ())
DIMENSIONS = 384


@pytest.fixture(params=["edge", "qdrant"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Vectors]:
    store: Vectors
    if request.param == "edge":
        store = await asyncio.to_thread(EdgeVectors, tmp_path / "vectors", search_threads=2)
    else:
        store = QdrantVectors(AsyncQdrantClient(":memory:"))
    await store.create("docs--v1", DIMENSIONS)
    yield store
    await store.close()


pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")


def direction(axis: int, other: int = 0, lean: float = 0.0) -> list[float]:
    vector = [0.0] * DIMENSIONS
    vector[axis] = (1 - lean**2) ** 0.5
    vector[other] += lean
    return vector


def point(revision: int, ordinal: int = 0, axis: int = 0, terms: tuple[int, ...] = (1,), **fields: Any) -> Point:
    passage = Passage(
        tenant="acme",
        allowed_groups=(),
        revision=revision,
        passage_id=f"p{revision}-{ordinal}",
        document_id=f"d{revision}",
        text="văn bản",
        title="T",
        uri="a.md",
        headings=("H1", "H2"),
        start=3,
        end=10,
        language="vi",
        metadata={"team": "it", "year": "2024"},
    )
    return Point(
        point_id(revision, ordinal),
        direction(axis),
        Sparse(sorted(terms), [float(term) for term in sorted(terms)]),
        replace(passage, **fields),
    )


async def found(store: Vectors, where: Where, *, dense: bool = True) -> list[int]:
    candidates = await store.search(
        "docs--v1",
        dense=direction(0) if dense else None,
        lexical=None if dense else Sparse([1], [1.0]),
        where=where,
        limit=10,
    )
    return [candidate.id >> 20 for candidate in candidates]


async def test_a_point_is_returned_as_it_was_stored(store: Vectors) -> None:
    stored = point(7, 2, axis=3, terms=(2, 5))
    await store.upsert("docs--v1", [stored])
    assert await store.passages("docs--v1", [stored.id]) == {stored.id: stored.passage}
    (back,) = await store.points("docs--v1", [stored.id])
    assert back.dense == pytest.approx(stored.dense)
    assert back.lexical.indices == [2, 5]
    assert await store.count("docs--v1") == 1


async def test_writing_a_point_twice_stores_it_once(store: Vectors) -> None:
    await store.upsert("docs--v1", [point(1)])
    await store.upsert("docs--v1", [point(1)])
    assert await store.count("docs--v1") == 1


async def test_points_found_by_either_method_have_both_scores(store: Vectors) -> None:
    await store.upsert(
        "docs--v1", [point(1, axis=0, terms=(9,)), point(2, axis=5, terms=(1,)), point(3, axis=6, terms=(9,))]
    )
    candidates = await store.search(
        "docs--v1", dense=direction(0, 5, 0.6), lexical=Sparse([1, 9], [2.0, 0.1]), where=ACME, limit=1
    )
    scores = {candidate.id >> 20: (candidate.dense, candidate.lexical) for candidate in candidates}
    assert scores[1] == pytest.approx((0.8, 0.9), abs=1e-5)
    assert scores[2] == pytest.approx((0.6, 2.0), abs=1e-5)


@pytest.mark.parametrize("dense", [True, False])
async def test_another_tenants_points_are_never_found(store: Vectors, dense: bool) -> None:
    await store.upsert("docs--v1", [point(1), point(2, tenant="globex"), point(3, tenant="acm")])
    assert await found(store, ACME, dense=dense) == [1]


@pytest.mark.parametrize("dense", [True, False])
async def test_a_search_with_groups_finds_points_of_these_groups_and_of_none(store: Vectors, dense: bool) -> None:
    await store.upsert(
        "docs--v1",
        [point(1), point(2, allowed_groups=("hr", "board")), point(3, allowed_groups=("it",))],
    )
    assert await found(store, ACME, dense=dense) == [1]
    assert await found(store, replace(ACME, groups=("hr", "x")), dense=dense) == [1, 2]
    assert await found(store, replace(ACME, groups=("it", "board")), dense=dense) == [1, 2, 3]


@pytest.mark.parametrize("dense", [True, False])
async def test_hidden_revisions_are_not_found(store: Vectors, dense: bool) -> None:
    await store.upsert("docs--v1", [point(1), point(2)])
    assert await found(store, replace(ACME, hidden=frozenset({1})), dense=dense) == [2]


async def test_language_and_metadata_narrow_a_search(store: Vectors) -> None:
    await store.upsert("docs--v1", [point(1), point(2, language="en"), point(3, metadata={"team": "hr"})])
    assert await found(store, replace(ACME, language="en")) == [2]
    assert await found(store, replace(ACME, metadata=(("team", "it"), ("year", "2024")))) == [1, 2]
    assert await found(store, replace(ACME, metadata=(("team", "it"), ("year", "2025")))) == []


async def test_a_search_for_unknown_terms_finds_nothing(store: Vectors) -> None:
    await store.upsert("docs--v1", [point(1, terms=(2,))])
    assert await found(store, ACME, dense=False) == []


async def test_deleting_revisions_leaves_the_others(store: Vectors) -> None:
    await store.upsert("docs--v1", [point(1), point(1, 1), point(2), point(3)])
    await store.delete("docs--v1", [1, 3, 99])
    assert await found(store, ACME) == [2]
    assert await store.count("docs--v1") == 1


async def test_indexes_are_separate_and_a_dropped_one_is_deleted(store: Vectors) -> None:
    await store.create("docs--v2", DIMENSIONS)
    await store.upsert("docs--v2", [point(1)])
    assert await store.count("docs--v1") == 0
    await store.drop("docs--v2")
    await store.drop("docs--v2")
    with pytest.raises((Unavailable, ValueError)):
        await store.count("docs--v2")


async def test_an_edge_store_opens_again_as_it_was(tmp_path: Path) -> None:
    store = await asyncio.to_thread(EdgeVectors, tmp_path, search_threads=1)
    await store.create("docs--v1", DIMENSIONS)
    await store.upsert("docs--v1", [point(1)])
    await store.close()
    store = await asyncio.to_thread(EdgeVectors, tmp_path, search_threads=1)
    await store.open("docs--v1")
    assert await found(store, ACME) == [1]
    await store.close()


async def test_a_qdrant_server_that_is_away_is_unavailable() -> None:
    client = await asyncio.to_thread(
        AsyncQdrantClient,
        url="http://127.0.0.1:9",
        grpc_port=9,
        prefer_grpc=True,
        timeout=2,
        check_compatibility=False,
    )
    store = QdrantVectors(client)
    with pytest.raises(Unavailable, match="Qdrant server failed"):
        await store.count("docs--v1")
    with pytest.raises(Unavailable, match="Qdrant server failed"):
        await found(store, ACME)
    await store.close()
