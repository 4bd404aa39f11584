"""A process that writes, builds and swaps until it is killed; its arguments: data folder, model folder, N.

At its start it checks that the documents of the previous process are whole, and at least edition N. It prints
"begins write" and "begins build" before these steps, and "edition N" after each acknowledged write.
"""

from __future__ import annotations

import asyncio
import sys
from operator import mul
from pathlib import Path

from genaifactory_common import specs
from genaifactory_retriever import lexical
from genaifactory_retriever.analysis import words
from genaifactory_retriever.documents import Block, assemble
from genaifactory_retriever.embedders.registry import Embedders
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.knowledge import EncodedDocument, KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.stored import Index, StoredDocument
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.vectors.protocol import Where
from genaifactory_retriever.versions import index_name
from tests.unit.retriever import small_model

DOCUMENTS = 5
SECTIONS = 4
EDITIONS_OF_A_BUILD = 3


def spec(data_dir: Path, edition: int) -> specs.KnowledgeBase:
    """With MiniLM, or every second time that a version is built with another embedder."""
    small = specs.OnnxEmbedder(type="onnx", path=str(data_dir / "small"))
    embedder = small if edition // EDITIONS_OF_A_BUILD % 2 else specs.MiniLMEmbedder()
    return specs.KnowledgeBase(name="docs", chunk_tokens=64, chunk_overlap_tokens=8, embedder=embedder)


def document(number: int, edition: int) -> StoredDocument:
    blocks = [
        block for i in range(SECTIONS) for block in (Block(f"Part {i}", 1), Block(f"shared words of edition{edition}"))
    ]
    parsed = assemble(blocks, "Manual")
    return StoredDocument(
        tenant="acme",
        document_id=f"d{number}",
        source_hash=f"{number}-{edition}",
        content_hash=f"{number}-{edition}",
        title=parsed.title,
        uri="a.md",
        language="en",
        metadata={},
        allowed_groups=(),
        text=parsed.text,
        sections=parsed.sections,
    )


async def whole_edition(base: KnowledgeBase, library: Library, vectors: EdgeVectors, encoder: Encoder) -> int:
    """The edition of all documents in all versions; fails for a mixture, also of vectors."""
    snapshot = base.snapshots.current
    assert snapshot.hidden == frozenset(), "points of unfinished revisions are left"
    editions = set()
    for index in snapshot.indexes:
        assert index.state in ("active", "previous", "ready")
        frequencies = library.passages_with(index.id, "acme", list(lexical.query_weights(words("shared"))))
        vector = lexical.query_vector(lexical.query_weights(words("shared")), frequencies, 1000)
        documents, passages = library.totals(index.id, "acme")
        assert await vectors.count(index_name(index)) == passages == documents * SECTIONS
        if not passages:
            editions.add(0)
            continue
        assert documents == DOCUMENTS
        await with_own_vectors(base, index, library, vectors, encoder)
        found = await vectors.search(index_name(index), dense=None, lexical=vector, where=Where("acme", ()), limit=1000)
        stored = await vectors.passages(index_name(index), [candidate.id for candidate in found])
        assert len(stored) == DOCUMENTS * SECTIONS
        for number in range(DOCUMENTS):
            texts = [passage.text for passage in stored.values() if passage.document_id == f"d{number}"]
            assert len(texts) == SECTIONS
            assert len(set(texts)) == 1
            editions.add(int(texts[0].removeprefix("shared words of edition")))
    assert len(editions) == 1, f"a mixture of editions {editions}"
    return editions.pop()


async def with_own_vectors(
    base: KnowledgeBase, index: Index, library: Library, vectors: EdgeVectors, encoder: Encoder
) -> None:
    for revision in library.indexed_revisions("docs"):
        stored = library.load(revision)
        assert stored is not None
        again = (await encoder.encode(stored, base.encoding(index))).points(revision, stored)
        points = {point.id: point for point in await vectors.points(index_name(index), [each.id for each in again])}
        for point in again:
            # Their dot product; vectors of two models have one near 0.
            assert sum(map(mul, point.dense, points[point.id].dense)) > 0.99


async def main(data_dir: Path, model_dir: Path, at_least: int) -> None:
    library = Library(data_dir / "library.sqlite")
    vectors = EdgeVectors(data_dir / "vectors", search_threads=1)
    encoder = Encoder(Embedders(model_dir), document_threads=1, query_threads=1)
    if not (data_dir / "small").exists():
        small_model.write(data_dir / "unfinished").rename(data_dir / "small")
    base = await KnowledgeBase.open(spec(data_dir, 0), library, vectors, encoder)
    edition = await whole_edition(base, library, vectors, encoder)
    assert edition >= at_least, f"edition {at_least} was acknowledged, {edition} is stored"
    print("ready", edition, flush=True)
    while True:
        edition += 1
        batch = [document(number, edition) for number in range(DOCUMENTS)]
        print("begins write", flush=True)
        await base.write(
            [EncodedDocument(one, {c: await encoder.encode(one, c) for c in base.encodings()}) for one in batch]
        )
        print("edition", edition, flush=True)
        if edition % EDITIONS_OF_A_BUILD == 0:
            print("begins build", flush=True)
            version = [step async for step in base.build(spec(data_dir, edition), f"build-{edition}")][-1].version
            await base.swap(version)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
