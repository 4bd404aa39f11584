"""Ids of documents when others are stored already, and stored documents that are gone from their source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from genaifactory.types.v1 import types_pb2
from genaifactory_common.testing import VERIFIER, served
from genaifactory_common.testing.retriever import FakeRetriever
from genaifactory_local import finding, sources
from genaifactory_pipelines.sources import folder
from genaifactory_pipelines.sources.selection import Reason
from genaifactory_pipelines.sources.store import Store
from tests.unit.local.gateways import gateway

pytestmark = pytest.mark.allow_blocking  # makes folders


@pytest.fixture
def retriever() -> FakeRetriever:
    return FakeRetriever()


@pytest.fixture
async def store(retriever: FakeRetriever) -> AsyncIterator[Store]:
    async with served(retriever.app(VERIFIER)) as to_retriever, gateway(retriever=to_retriever) as channel:
        yield Store(channel, "documents")


def put(retriever: FakeRetriever, document_id: str, source: Path | str) -> None:
    retriever.documents[document_id] = types_pb2.Document(document_id=document_id, source=str(source))


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


async def labelled(store: Store, *paths: Path) -> folder.FoundFiles:
    return await sources.labelled(store, await asyncio.to_thread(finding.find, paths))


def ids(found: folder.FoundFiles) -> list[str]:
    return [document.document_id for document in found.documents]


async def test_a_folder_of_a_name_that_is_taken_is_named_by_more_of_its_path(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    write(tmp_path / "one" / "docs" / "a.md")
    mine = write(tmp_path / "two" / "docs" / "a.md").parent
    (mine / "photo.jpg").touch()
    assert ids(await labelled(store, mine)) == ["docs/a.md"]
    put(retriever, "docs/a.md", tmp_path / "one" / "docs")
    found = await labelled(store, mine)
    assert ids(found) == ["two/docs/a.md"]
    assert found.skipped[0].name == "two/docs/photo.jpg"
    assert await sources.gone(store, found) == []


async def test_a_source_keeps_the_name_that_its_documents_have(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    mine = write(tmp_path / "two" / "docs" / "a.md").parent
    put(retriever, "two/docs/a.md", mine)
    assert ids(await labelled(store, mine)) == ["two/docs/a.md"]


async def test_two_folders_of_one_name_in_one_call_stay_apart(store: Store, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name / "docs" / "a.md").parent for name in ("one", "two"))
    assert ids(await labelled(store, first, second)) == ["docs/a.md", "two/docs/a.md"]


async def test_two_files_of_one_name_stay_apart(store: Store, retriever: FakeRetriever, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name / "a.md") for name in ("one", "two"))
    assert ids(await labelled(store, first, second)) == ["a.md", "two/a.md"]
    put(retriever, "a.md", "/elsewhere/a.md")
    put(retriever, "a.md.md", "/elsewhere/a.md.md")
    assert ids(await labelled(store, first)) == ["one/a.md"]


async def test_stored_documents_without_a_source_do_not_take_a_label(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    mine = write(tmp_path / "docs" / "a.md").parent
    put(retriever, "docs/a.md", "")
    assert ids(await labelled(store, mine)) == ["docs/a.md"]


async def test_only_documents_of_the_source_itself_count_as_gone(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    mine = write(tmp_path / "docs" / "a.md").parent
    for name in ("docs/a.md", "docs/old.md", "docs/sub/old.md"):
        put(retriever, name, mine)
    put(retriever, "docs/nobodys.md", "")
    put(retriever, "other/x.md", "/other")
    found = await labelled(store, mine)
    assert await sources.gone(store, found) == ["docs/old.md", "docs/sub/old.md"]


async def test_documents_below_a_folder_that_cannot_be_read_are_not_gone(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    mine = write(tmp_path / "docs" / "a.md").parent
    for name in ("docs/a.md", "docs/shut/b.md", "docs/shutter.md"):
        put(retriever, name, mine)
    found = await labelled(store, mine)
    (source,) = found.sources
    shut = folder.Skipped(source, "shut/", Reason.UNREADABLE, "Permission denied")
    found = folder.FoundFiles(found.documents, (shut,), found.sources)
    assert await sources.gone(store, found) == ["docs/shutter.md"]


async def test_a_name_that_is_too_long_with_more_of_its_path_is_skipped(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    below = "/".join(["f" * 240, "g" * 240, "h.md"])
    mine = tmp_path / ("above" * 10) / "docs"
    write(mine / below)
    write(mine / "a.md")
    put(retriever, "docs/a.md", "/elsewhere/docs")
    found = await labelled(store, mine)
    assert ids(found) == [f"{'above' * 10}/docs/a.md"]
    assert [each.reason for each in found.skipped] == [Reason.LONG]


async def test_documents_of_others_than_the_samples_are_counted(store: Store, retriever: FakeRetriever) -> None:
    names = frozenset(("samples", "/project/docs"))
    assert await sources.count_others(store, names) == 0
    put(retriever, "sample/a.md", "samples")
    put(retriever, "docs/tour.md", "/project/docs")
    assert await sources.count_others(store, names) == 0
    put(retriever, "mine/a.md", "/mine")
    assert await sources.count_others(store, names) == 1
    assert await sources.of_sources(store, names) == ["docs/tour.md", "sample/a.md"]
