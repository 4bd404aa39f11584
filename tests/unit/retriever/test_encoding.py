"""Encoding of documents on several threads."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from genaifactory_common.errors import Overloaded
from genaifactory_common.minilm import MiniLM
from genaifactory_retriever.documents import Block, assemble
from genaifactory_retriever.embedders.minilm import MiniLMEmbedder
from genaifactory_retriever.encoding import Encoder, Encoding
from genaifactory_retriever.knowledge import EncodedDocument
from genaifactory_retriever.stored import StoredDocument


def _encoding(model: MiniLM) -> Encoding:
    return Encoding(chunk_tokens=32, overlap_tokens=4, embedder=MiniLMEmbedder(model))


def _stored(text: str, document_id: str = "a") -> StoredDocument:
    document = assemble([Block("Leave", 1), Block(text)])
    return StoredDocument(
        tenant="acme",
        document_id=document_id,
        source_hash="s",
        content_hash="c",
        title=document.title,
        uri="a.md",
        language="",
        metadata={},
        allowed_groups=(),
        text=document.text,
        sections=document.sections,
    )


def _sentences(count: int) -> str:
    return " ".join(
        f"Sentence {i} says that the allowance of team {i} is {i * 7} days in a year." for i in range(count)
    )


async def test_the_vectors_of_a_long_document_equal_those_of_its_texts_alone(encoder: Encoder, model: MiniLM) -> None:
    encoded = await encoder.encode(_stored(_sentences(40)), _encoding(model))
    assert len(encoded.passages) >= 20
    for passage in encoded.passages:
        alone = model.embed([f"Leave\n{passage.chunk.text}"])[0]
        assert passage.dense == alone.tolist()
    starts = [passage.chunk.start for passage in encoded.passages]
    assert starts == sorted(starts)


async def test_every_thread_works_on_one_long_document(encoder: Encoder, model: MiniLM) -> None:
    together = threading.Barrier(2, timeout=30)

    class Meeting(MiniLMEmbedder):
        """The model; its first two calls return only when two threads are inside."""

        calls = itertools.count()

        def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
            if next(self.calls) < 2:
                together.wait()
            return [[0.0] * self.dimensions for _ in texts]

    encoding = replace(_encoding(model), embedder=Meeting(model))
    encoded = await encoder.encode(_stored(_sentences(40)), encoding)
    assert len(encoded.passages) >= 20  # with one thread the barrier would have broken


async def test_a_short_document_does_not_wait_for_a_long_one_of_another_upload(encoder: Encoder, model: MiniLM) -> None:
    encoding = _encoding(model)
    done: list[str] = []

    async def encode(document: StoredDocument) -> None:
        await encoder.encode(document, encoding)
        done.append(document.document_id)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(encode(_stored(_sentences(120), "long")))
        tasks.create_task(encode(_stored(_sentences(2), "short")))
    assert done == ["short", "long"]


async def test_an_api_that_hangs_does_not_delay_queries_of_other_embedders(encoder: Encoder, model: MiniLM) -> None:
    answers = threading.Event()

    class Remote(MiniLMEmbedder):
        is_remote = True

    hanging = [asyncio.create_task(encoder.on_query_thread(Remote(model), answers.wait, 30)) for _ in range(8)]
    try:
        async with asyncio.timeout(10):
            assert await encoder.on_query_thread(MiniLMEmbedder(model), lambda: 1) == 1
        assert not any(task.done() for task in hanging)
    finally:
        answers.set()
        await asyncio.gather(*hanging)


async def test_an_api_that_hangs_delays_neither_another_one_nor_documents_and_has_a_bound(
    encoder: Encoder, model: MiniLM
) -> None:
    answers = threading.Event()

    class Remote(MiniLMEmbedder):
        is_remote = True

    class Hanging(Remote):
        def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
            answers.wait(30)
            return [[0.0] * self.dimensions for _ in texts]

    stuck = Hanging(model)
    asked = [asyncio.create_task(encoder.on_query_thread(stuck, answers.wait, 30)) for _ in range(64)]
    hanging = replace(_encoding(model), embedder=stuck)
    documents = [asyncio.create_task(encoder.encode(_stored(_sentences(2), f"d{i}"), hanging)) for i in range(8)]
    try:
        async with asyncio.timeout(10):
            await asyncio.sleep(0.2)
            with pytest.raises(Overloaded):
                await encoder.on_query_thread(stuck, lambda: 1)
            assert await encoder.on_query_thread(Remote(model), lambda: 1) == 1
            assert (await encoder.encode(_stored(_sentences(2)), _encoding(model))).passages
        assert not any(task.done() for task in (*asked, *documents))
    finally:
        answers.set()
        await asyncio.gather(*asked, *documents)
    assert await encoder.on_query_thread(stuck, lambda: 1) == 1


async def test_the_disk_space_that_a_document_needs_grows_with_the_dimensions_of_its_vectors(
    encoder: Encoder, model: MiniLM
) -> None:
    class Large(MiniLMEmbedder):
        dimensions = 4096

        def embed_passages(self, texts: Sequence[str]) -> list[list[float]]:
            return [[1.0] * self.dimensions for _ in texts]

    small, large = _encoding(model), replace(_encoding(model), embedder=Large(model))
    document = _stored(_sentences(2))
    needs = [
        EncodedDocument(document, {each: await encoder.encode(document, each)}).growth_bytes for each in (small, large)
    ]
    passages = len((await encoder.encode(document, small)).passages)
    assert needs[1] - needs[0] == passages * 12 * (4096 - 384)


async def test_document_threads_have_a_lower_priority_than_query_threads(encoder: Encoder, model: MiniLM) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = niceness()
    assert await encoder.on_document_thread(niceness) == min(own + 5, 19)
    assert await encoder.on_query_thread(MiniLMEmbedder(model), niceness) == own
    assert niceness() == own
