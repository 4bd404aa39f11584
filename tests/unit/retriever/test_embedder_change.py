"""Another embedder for a knowledge base: a new index version beside the old one, each with its own vectors."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from genaifactory.retriever.v1 import retriever_pb2 as pb
from genaifactory_common import specs
from genaifactory_common.errors import FactoryError, InvalidArgument, OutOfSpace, Unavailable
from genaifactory_common.minilm import MiniLM
from genaifactory_common.testing import CALLER, act_as
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.knowledge import EncodedDocument, KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.vectors.protocol import Point
from genaifactory_retriever.versions import Progress

from . import small_model
from .conftest import FACTORY, Client, Doc, outcomes, retriever
from .crash_child import document

DENSE = pb.SEARCH_MODE_DENSE
TOPICS = (
    "annual leave",
    "salaries",
    "travel by train",
    "health insurance",
    "parking",
    "the canteen",
    "laptops",
    "keys",
)
DOCUMENTS = [Doc(f"d{i}", f"# Rules {i}\n\nThis page is about {topic}, number {i}.") for i, topic in enumerate(TOPICS)]


def question(number: int) -> str:
    """What the model reads of a document's passage, so that the score is 1 with the version's own embedder."""
    return f"Rules {number}\nThis page is about {TOPICS[number]}, number {number}."


def factory(embedder: str) -> specs.Factory:
    return specs.parse(FACTORY.replace("chunk_overlap_tokens: 8}", f"chunk_overlap_tokens: 8, embedder: {embedder}}}"))


def onnx(folder: Path) -> str:
    return f"{{type: onnx, path: {folder}}}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model with as many dimensions as MiniLM: only its vectors differ."""
    return small_model.write(tmp_path / "small", dimensions=384)


async def finds(client: Client, text: str, document_id: str, version: str = "") -> str:
    """The index version that answered; fails unless the document is first, with the score of equal vectors."""
    found = await client.search(text, mode=DENSE, limit=1, index_version=version)
    assert found.passages[0].document_id == document_id
    assert found.passages[0].score > 0.98  # of vectors of two models it is near 0
    return found.index_version


async def finds_each(client: Client, *, version: str = "") -> set[str]:
    """The index versions that answered."""
    return {await finds(client, question(number), f"d{number}", version) for number in range(len(TOPICS))}


async def test_no_search_fails_or_mixes_vectors_while_the_embedder_is_changed(
    client: Client, model: MiniLM, folder: Path
) -> None:
    act_as(CALLER)
    await client.ingest(DOCUMENTS)
    changed = asyncio.Event()
    answered: list[set[str]] = []

    async def searches() -> None:
        while not changed.is_set():
            answered.append(await finds_each(client))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(searches())
        assert await finds_each(client) == {"v1"}
        client.source.replace(factory(onnx(folder)))
        assert await finds_each(client) == {"v1"}  # the old version serves, with the old embedder
        built = (await client.build())[-1]
        assert (built.index_version, built.state) == ("v2", pb.INDEX_STATE_READY)
        # A document that is written while both are open is found by both.
        added = Doc("d8", "# Rules 8\n\nThis page is about bicycles, number 8.")
        assert outcomes(await client.ingest([added])) == ["added"]
        for version in ("v1", "v2"):
            assert await finds_each(client, version=version) == {version}
            await finds(client, "Rules 8\nThis page is about bicycles, number 8.", "d8", version)
        await client.swap("v2")
        assert await finds_each(client) == {"v2"}
        await client.swap("v1")  # the way back
        assert await finds_each(client) == {"v1"}
        await client.swap("v2")
        changed.set()
    assert len(answered) > 3
    assert set().union(*answered) == {"v1", "v2"}
    assert [each.embedding_model for each in await client.indexes()] == ["small", "minilm"]


async def test_versions_keep_their_embedders_over_a_restart_and_an_unusable_one_stops_the_start(
    tmp_path: Path, model_dir: Path, model: MiniLM, folder: Path
) -> None:
    act_as(CALLER)
    async with retriever(tmp_path / "data", model_dir) as client:
        await client.ingest(DOCUMENTS)
        client.source.replace(factory(onnx(folder)))
        await client.build()
        await client.swap("v2")
    async with retriever(tmp_path / "data", model_dir) as client:  # factory.yaml has MiniLM again
        assert await finds_each(client) == {"v2"}
        assert await finds_each(client, version="v1") == {"v1"}
    moved = await asyncio.to_thread(folder.rename, tmp_path / "moved")
    await refuses_to_start(
        tmp_path / "data", model_dir, "'v2' of 'docs' was made with the embedder 'small'.*has no file"
    )
    await asyncio.to_thread(lambda: small_model.write(folder, seed=1, dimensions=384))
    await refuses_to_start(
        tmp_path / "data", model_dir, "'v2' of 'docs' was made with the embedder 'small'.*other files"
    )
    # The same files at the place that factory.yaml names now.
    async with retriever(tmp_path / "data", model_dir, factory=factory(onnx(moved))) as client:
        assert await finds_each(client) == {"v2"}


async def test_a_version_that_does_not_serve_and_lost_its_embedder_can_be_dropped(
    tmp_path: Path, model_dir: Path, model: MiniLM, folder: Path
) -> None:
    act_as(CALLER)
    copies = [Doc("copy", DOCUMENTS[0].text), Doc("copy2", DOCUMENTS[0].text)]
    async with retriever(tmp_path / "data", model_dir, factory=factory(onnx(folder))) as client:
        await client.ingest([*DOCUMENTS, *copies])
        client.source.replace(factory("{type: minilm}"))
        await client.build()
        await client.swap("v2")
    await asyncio.to_thread(shutil.rmtree, folder)
    # Also one whose files are damaged, and so would be built again with its embedder.
    await asyncio.to_thread(shutil.rmtree, tmp_path / "data" / "vectors" / "docs--v1")
    async with retriever(tmp_path / "data", model_dir) as client:
        assert await finds_each(client) == {"v2"}
        lost = "'v1' of 'docs' was made with the embedder 'small'.*`genaifactory indexes drop`"
        with pytest.raises(Unavailable, match=lost):
            await client.search("leave", index_version="v1")
        with pytest.raises(Unavailable, match=lost):
            await client.swap("v1")
        (refused,) = await client.ingest([Doc("new", "# New\n\nIt has words.")])
        assert refused.error_reason == "UNAVAILABLE"
        assert await client.delete("d0") == 1  # the passages of its copies need the lost embedder
        assert not (await client.search(question(0), mode=DENSE, limit=1)).passages[0].document_id.startswith("copy")
    async with retriever(tmp_path / "data", model_dir) as client:
        await client.drop("v1")
        assert outcomes(await client.ingest([Doc("new", "# New\n\nIt has words.")])) == ["added"]
        assert await finds(client, question(0), "copy") == "v2"  # the write has given it its passages
        assert {each.version for each in await client.indexes()} == {"v2"}


async def refuses_to_start(data_dir: Path, model_dir: Path, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        await retriever(data_dir, model_dir).__aenter__()


async def test_a_build_with_an_embedder_that_cannot_be_loaded_is_refused_and_changes_nothing(
    client: Client, model: MiniLM, tmp_path: Path
) -> None:
    act_as(CALLER)
    await client.ingest(DOCUMENTS)
    client.source.replace(factory(onnx(tmp_path / "nowhere")))
    with pytest.raises(FactoryError, match=r"The embedding model has no file .*modules\.json"):
        await client.build()
    assert [each.version for each in await client.indexes()] == ["v1"]
    client.source.replace(factory("{type: minilm}"))
    assert (await client.build())[-1].state == pb.INDEX_STATE_READY


async def test_a_build_of_passages_that_the_model_would_not_read_whole_is_refused(
    client: Client, model: MiniLM, tmp_path: Path
) -> None:
    act_as(CALLER)
    short = await asyncio.to_thread(lambda: small_model.write(tmp_path / "short", max_tokens=63))
    client.source.replace(factory(onnx(short)))
    with pytest.raises(InvalidArgument, match="'short' reads 63 tokens of a passage, and chunk_tokens is 64") as raised:
        await client.build()
    assert raised.value.field == "knowledge_bases[docs].chunk_tokens"
    assert [each.version for each in await client.indexes()] == ["v1"]


def recorded(data_dir: Path) -> tuple[int, list[tuple[str, int]]]:
    """The version of the library's file, and the embedders in it with their dimensions."""
    with sqlite3.connect(data_dir / "library.sqlite") as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        rows = connection.execute("SELECT embedder, dimensions FROM embeddings ORDER BY index_id").fetchall()
    connection.close()
    return version, rows


@pytest.mark.allow_blocking
async def test_a_library_from_before_embedders_were_recorded_is_minilms_until_another_is_built(
    tmp_path: Path, model_dir: Path, model: MiniLM, folder: Path
) -> None:
    act_as(CALLER)
    data_dir = tmp_path / "data"
    async with retriever(data_dir, model_dir) as client:
        await client.ingest(DOCUMENTS)
    with sqlite3.connect(data_dir / "library.sqlite") as connection:  # the file of the version before
        connection.execute("DROP TABLE embeddings")
    connection.close()
    # factory.yaml may name another embedder by then: the vectors are MiniLM's all the same.
    async with retriever(data_dir, model_dir, factory=factory(onnx(folder))) as client:
        assert await finds_each(client) == {"v1"}
        # A platform from before would still read this file rightly, and not one with vectors of another embedder.
        assert recorded(data_dir) == (1, [('{"type":"minilm"}', 384)] * 2)  # the other one is of `private`
        await client.build()
        assert recorded(data_dir)[0] == 2
    async with retriever(data_dir, model_dir) as client:
        assert await finds_each(client, version="v2") == {"v2"}
    assert recorded(data_dir)[0] == 2


class FullOnce(EdgeVectors):
    """A store whose disk is full at the third write into a version that is not the first."""

    writes = 0

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        if not index.endswith("v1"):
            self.writes += 1
            if self.writes == 3:
                raise OutOfSpace("full")
        await super().upsert(index, points)


async def test_a_build_on_a_full_disk_leaves_the_old_version_and_the_next_one_succeeds(
    tmp_path: Path, encoder: Encoder, folder: Path
) -> None:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(FullOnce, tmp_path / "vectors", search_threads=1)
    before = specs.KnowledgeBase(name="docs", chunk_tokens=64)
    base = await KnowledgeBase.open(before, library, vectors, encoder)
    after = before.model_copy(update={"embedder": specs.OnnxEmbedder(type="onnx", path=str(folder))})
    try:
        await base.write([EncodedDocument(document(number, 1), {}) for number in range(5)])
        with pytest.raises(OutOfSpace):
            _ = [step async for step in base.build(after, "")]
        (left,) = base.snapshots.current.indexes
        assert left.state == "active"
        assert left.embedding is not None
        assert left.embedding.embedder == specs.MiniLMEmbedder()
        gc.collect()
        assert len(encoder.embedders._loaded) == 1  # the other one does not stay in memory
        last = [step async for step in base.build(after, "")][-1]
        assert (last.version, last.state) == ("v3", "ready")
    finally:
        await vectors.close()
        await asyncio.to_thread(library.close)


async def test_a_build_that_is_cancelled_while_a_search_runs_can_be_started_again_with_its_key(
    tmp_path: Path, encoder: Encoder
) -> None:
    spec = specs.KnowledgeBase(name="docs")
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(EdgeVectors, tmp_path / "vectors", search_threads=1)
    base = await KnowledgeBase.open(spec, library, vectors, encoder)

    async def build() -> list[Progress]:
        return [step async for step in base.build(spec, "key")]

    try:
        await base.write([EncodedDocument(document(number, 1), {}) for number in range(5)])
        with base.snapshots.hold():  # by a search, which the build waits for
            building = asyncio.create_task(build())
            async with asyncio.timeout(20):
                while len(base.snapshots.current.indexes) < 2:  # noqa: ASYNC110  # it has no public event
                    await asyncio.sleep(0.01)
            building.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await building
        assert [index.version for index in base.snapshots.current.indexes] == ["v1"]
        assert (await build())[-1].state == "ready"
    finally:
        await vectors.close()
        await asyncio.to_thread(library.close)
