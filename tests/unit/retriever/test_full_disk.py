"""A store that fails in the middle of an upload, and disk blocks for files that are written through memory maps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import pytest

from genaifactory_common import settings, specs
from genaifactory_common.errors import OutOfSpace
from genaifactory_common.space import Space, Volume
from genaifactory_retriever.budget import ByteBudget
from genaifactory_retriever.encoding import Encoder
from genaifactory_retriever.ingestion import Header, Ingestion, Upload
from genaifactory_retriever.knowledge import KnowledgeBase
from genaifactory_retriever.library import Library
from genaifactory_retriever.vectors import mapped
from genaifactory_retriever.vectors.edge import EdgeVectors
from genaifactory_retriever.vectors.protocol import Point
from tests.unit.retriever.conftest import LIMITS

DOCUMENTS = 20
MIB = 1 << 20


async def uploads(budget: ByteBudget) -> AsyncIterator[Upload]:
    for number in range(DOCUMENTS):
        data = f"# Note {number}\n\nThe secret word of this note is zq{number}.\n".encode()
        await budget.acquire(len(data))
        yield Upload(Header(f"{number}.md", f"{number}.md", "", "", "", {}, ()), data)


def pages(library: Library, most: int) -> Callable[[], None]:
    def limit() -> None:
        with library._transaction() as connection:
            connection.execute(f"PRAGMA max_page_count = {most}")

    return limit


@pytest.fixture
async def parts(tmp_path: Path, encoder: Encoder) -> AsyncIterator[tuple[Library, KnowledgeBase]]:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(EdgeVectors, tmp_path / "vectors", search_threads=1)
    yield library, await KnowledgeBase.open(specs.KnowledgeBase(name="docs"), library, vectors, encoder)
    await vectors.close()
    await asyncio.to_thread(library.close)


def ingestion(encoder: Encoder, budget: ByteBudget, space: Space) -> Ingestion:
    return Ingestion(encoder, LIMITS, budget, space, documents_in_flight=2)


async def test_an_upload_that_failed_on_a_full_library_may_be_sent_again(
    tmp_path: Path, encoder: Encoder, parts: tuple[Library, KnowledgeBase]
) -> None:
    library, knowledge_base = parts
    budget = ByteBudget(MIB)
    taking = ingestion(encoder, budget, Space("retriever", tmp_path, settings.Space(full_bytes=0)))
    await library.run(pages(library, 1))  # SQLite is full at its present size from then on
    async with asyncio.timeout(30):
        with pytest.raises(OutOfSpace, match=r"The disk that holds .* is full"):
            _ = [result async for result in taking.ingest(knowledge_base, "acme", uploads(budget), groups=None)]
    await budget.acquire(MIB)  # everything was released
    budget.release(MIB)
    await library.run(pages(library, 1 << 30))
    results = [result async for result in taking.ingest(knowledge_base, "acme", uploads(budget), groups=None)]
    # Some were stored in the file's free pages; none is stored twice.
    assert {result.outcome for result in results} <= {"added", "unchanged"}
    assert len(await library.run(library.indexed_revisions, "docs")) == DOCUMENTS


async def test_an_upload_is_refused_as_a_whole_while_the_disk_is_full(
    tmp_path: Path, encoder: Encoder, parts: tuple[Library, KnowledgeBase]
) -> None:
    _, knowledge_base = parts
    space = Space("retriever", tmp_path, settings.Space(), read=lambda _: Volume(free=MIB, size=1 << 40))
    await asyncio.to_thread(space.look)
    budget = ByteBudget(MIB)
    with pytest.raises(OutOfSpace, match="Make room on it"):
        await anext(ingestion(encoder, budget, space).ingest(knowledge_base, "acme", uploads(budget), groups=None))


class Full(EdgeVectors):
    """A store without any space."""

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        for _ in range(1000):  # meanwhile the upload continues until the queue is full
            await asyncio.sleep(0)
        raise OutOfSpace("full")


async def test_an_upload_ends_when_a_write_fails_while_its_queue_is_full(tmp_path: Path, encoder: Encoder) -> None:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(Full, tmp_path / "vectors", search_threads=1)
    knowledge_base = await KnowledgeBase.open(specs.KnowledgeBase(name="docs"), library, vectors, encoder)
    budget = ByteBudget(MIB)
    taking = ingestion(encoder, budget, Space("retriever", tmp_path, settings.Space(full_bytes=0)))
    async with asyncio.timeout(20):
        with pytest.raises(OutOfSpace):
            _ = [result async for result in taking.ingest(knowledge_base, "acme", uploads(budget), groups=None)]
    await budget.acquire(MIB)  # everything was released
    await vectors.close()
    await asyncio.to_thread(library.close)


class Undeleting(EdgeVectors):
    """A store without space for deletions, which records the hidden revisions during its writes."""

    knowledge_base: KnowledgeBase
    hidden: frozenset[int] = frozenset()

    async def upsert(self, index: str, points: Sequence[Point]) -> None:
        self.hidden = self.knowledge_base.snapshots.current.hidden
        await super().upsert(index, points)

    async def delete(self, index: str, revisions: Iterable[int]) -> None:
        raise OutOfSpace("full")


async def test_points_that_cannot_be_deleted_stay_hidden_and_fail_no_later_write(
    tmp_path: Path, encoder: Encoder
) -> None:
    library = await asyncio.to_thread(Library, tmp_path / "library.sqlite")
    vectors = await asyncio.to_thread(Undeleting, tmp_path / "vectors", search_threads=1)
    knowledge_base = await KnowledgeBase.open(specs.KnowledgeBase(name="docs"), library, vectors, encoder)
    vectors.knowledge_base = knowledge_base
    budget = ByteBudget(MIB)
    taking = ingestion(encoder, budget, Space("retriever", tmp_path, settings.Space(full_bytes=0)))

    async def sent(document_id: str, text: str) -> str:
        async def upload() -> AsyncIterator[Upload]:
            await budget.acquire(len(text))
            yield Upload(Header(document_id, document_id, "", "", "", {}, ()), text.encode())

        (result,) = [result async for result in taking.ingest(knowledge_base, "acme", upload(), groups=None)]
        return result.outcome

    assert await sent("a.md", "The first version.") == "added"
    (old,) = await library.run(library.indexed_revisions, "docs")
    assert await sent("a.md", "The second version.") == "replaced", "it is stored, although the old one is not deleted"
    assert await sent("b.md", "Another document.") == "added"
    assert old in vectors.hidden, "while another document is written too"
    assert old in knowledge_base.snapshots.current.hidden
    await vectors.close()
    await asyncio.to_thread(library.close)


def with_hole(path: Path, *, written: int, size: int) -> Path:
    with path.open("wb") as file:
        file.write(b"x" * written)
        file.truncate(size)
    return path


def blocks(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def test_blocks_are_allocated_for_the_next_write_and_only_once(tmp_path: Path) -> None:
    file = with_hole(tmp_path / "page_0.dat", written=100_000, size=8 * MIB)
    mapped.make_room(tmp_path, MIB)
    taken = blocks(file)
    assert 100_000 + MIB <= taken <= 100_000 + MIB + 3 * 4096
    for _ in range(3):
        mapped.make_room(tmp_path, MIB)
    assert blocks(file) == taken
    with file.open("r+b") as opened:
        opened.seek(100_000)
        opened.write(b"y" * MIB)
    mapped.make_room(tmp_path, MIB)
    assert blocks(file) >= 100_000 + 2 * MIB
    assert file.read_bytes()[:100_001] == b"x" * 100_000 + b"y"
    assert file.stat().st_size == 8 * MIB


def test_a_file_that_is_renamed_meanwhile_gets_its_blocks_under_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_hole(tmp_path / "tmp-open-3", written=0, size=8 * MIB)
    used = tmp_path / "open-3"
    walk = os.walk

    def then_renamed(folder: Path) -> list[tuple[str, list[str], list[str]]]:
        listed = list(walk(folder))
        if made.exists():
            made.rename(used)
        return listed

    monkeypatch.setattr(os, "walk", then_renamed)
    mapped.make_room(tmp_path, MIB)
    assert blocks(used) >= MIB


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page_0.dat").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"page_0\.dat"):
        mapped.make_room(tmp_path, MIB)


def test_no_blocks_are_allocated_beyond_the_end_of_a_file(tmp_path: Path) -> None:
    small = with_hole(tmp_path / "flags.dat", written=0, size=10_000)
    whole = with_hole(tmp_path / "whole.dat", written=10_000, size=10_000)
    mapped.make_room(tmp_path, MIB)
    assert 10_000 <= blocks(small) <= 3 * 4096
    assert (small.stat().st_size, whole.stat().st_size) == (10_000, 10_000)


def test_nothing_is_written_without_free_space(tmp_path: Path) -> None:
    file = with_hole(tmp_path / "page_0.dat", written=0, size=MIB)
    before = blocks(file)
    with pytest.raises(OutOfSpace, match="are needed"):
        mapped.make_room(tmp_path, 1 << 60)
    assert blocks(file) == before
