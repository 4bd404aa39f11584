"""The service with another embedder, and with a reranker, each in the place of ours."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common.minilm import MiniLM
from genaifactory_common.testing import CALLER, act_as
from genaifactory_retriever import app
from genaifactory_retriever.embedders import minilm
from genaifactory_retriever.encoding import EncodedQuery
from genaifactory_retriever.rerankers.protocol import Hit

from .conftest import Doc, retriever

DENSE = retriever_pb2.SEARCH_MODE_DENSE


class Trigrams:
    """An embedder without weights: three letters in a row, hashed."""

    dimensions = 64
    digest = "trigrams"
    texts_at_once = 4
    max_tokens = None
    is_remote = False

    def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        for i in range(max(1, len(text) - 2)):
            vector[zlib.crc32(text[i : i + 3].lower().encode()) % self.dimensions] += 1
        length = math.hypot(*vector)
        return [component / length for component in vector]

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(text))]


class ShortestFirst:
    """A reranker that reads all candidates."""

    reads = 50

    def __init__(self) -> None:
        self.read: list[Sequence[Hit]] = []

    async def rerank(self, text: str, query: EncodedQuery, hits: Sequence[Hit]) -> Sequence[Hit]:
        self.read.append(hits)
        return sorted(
            (hit._replace(score=1 / len(hit.passage.text)) for hit in hits), key=lambda hit: hit.score, reverse=True
        )


async def test_indexes_of_an_embedder_with_other_dimensions_are_searched_and_pass_their_check(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "load", lambda spec, cache_dir: Trigrams())
    act_as(CALLER)
    async with retriever(tmp_path / "data", model_dir) as client:
        await client.ingest([Doc("a", "# Leave\n\nVacations are long."), Doc("b", "# Pay\n\nSalaries rise.")])
        assert (await client.build())[-1].state == retriever_pb2.INDEX_STATE_READY
        found = await client.search("vacationing", mode=DENSE, limit=1)
        assert [passage.document_id for passage in found.passages] == ["a"]
    # Passages are measured in the embedder's tokens, here letters: 64 of them.
    async with retriever(tmp_path / "data", model_dir) as client:
        await client.ingest([Doc("long", "# Leave\n\n" + "A sentence of twenty letters. " * 20)])
        found = await client.search("sentence of letters", mode=DENSE, limit=50)
        assert max(len(passage.text) for passage in found.passages) <= 64


async def test_a_reranker_reads_more_than_the_limit_and_only_passages_the_caller_may_see(
    tmp_path: Path, model_dir: Path, model: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = ShortestFirst()
    monkeypatch.setattr(app, "FusedOrder", lambda: reranker)
    async with retriever(tmp_path / "data", model_dir) as client:
        act_as(CALLER)
        documents = [
            Doc("exact", "Annual leave is fourteen days a year for everybody who works here."),
            Doc("brief", "Annual leave."),
            Doc("secret", "Leave!", groups=("board",)),
        ]
        await client.ingest(documents)
        found = await client.search("How many days of annual leave?", limit=1)
        assert [passage.document_id for passage in found.passages] == ["brief"]
        assert found.passages[0].score == pytest.approx(1 / len("Annual leave."))
        (hits,) = reranker.read
        assert [hit.passage.document_id for hit in hits] == ["exact", "brief"]
        assert all(hit.candidate.lexical > 0 and hit.candidate.dense > 0 for hit in hits)
