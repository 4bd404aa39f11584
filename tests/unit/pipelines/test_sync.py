"""What reading a source must not do to documents that are stored."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from genaifactory.types.v1 import types_pb2
from genaifactory_common import specs
from genaifactory_common.errors import Conflict, PermissionDenied
from genaifactory_common.testing import VERIFIER, served
from genaifactory_common.testing.retriever import FakeRetriever
from genaifactory_pipelines.progress import Progress
from genaifactory_pipelines.sources import sync
from genaifactory_pipelines.sources.store import Store
from tests.unit.local.gateways import gateway

pytestmark = pytest.mark.allow_blocking  # makes files


@pytest.fixture
def retriever() -> FakeRetriever:
    return FakeRetriever()


@pytest.fixture
async def store(retriever: FakeRetriever) -> AsyncIterator[Store]:
    async with served(retriever.app(VERIFIER)) as to_retriever, gateway(retriever=to_retriever) as channel:
        yield Store(channel, "documents")


def put(retriever: FakeRetriever, source: str, *names: str) -> None:
    for name in names:
        retriever.documents[name] = types_pb2.Document(document_id=name, source=source)


async def synchronised(
    store: Store, folder: Path, *, least_share: float = 0.5, shrinking: bool = False, groups: tuple[str, ...] = ()
) -> sync.Synced:
    source = specs.FolderSource(
        name="wiki",
        type="folder",
        path=str(folder),
        knowledge_base="documents",
        least_share=least_share,
        groups=groups,
    )
    progress = Progress(Console(file=io.StringIO()))
    (done,) = await sync.synchronise(store.channel, [source], progress, shrinking=shrinking)
    return done


@pytest.mark.parametrize(
    ("stored", "least_share", "removed"), [(2, 0.5, 1), (3, 0.5, None), (3, 0.3, 2), (1, 1.0, 0), (2, 0.51, None)]
)
async def test_a_source_that_lost_more_than_its_bound_loses_no_document(
    store: Store, retriever: FakeRetriever, tmp_path: Path, stored: int, least_share: float, removed: int | None
) -> None:
    (tmp_path / "0.md").write_text("still there")
    names = [f"wiki/{number}.md" for number in range(stored)]
    put(retriever, "wiki", *names)
    if removed is None:
        with pytest.raises(Conflict, match=f"{stored - 1} of the {stored} stored documents"):
            await synchronised(store, tmp_path, least_share=least_share)
        assert set(names) <= retriever.documents.keys()
        assert not retriever.uploaded
        found = await synchronised(store, tmp_path, least_share=least_share, shrinking=True)
        assert found.summary.removed == stored - 1
    else:
        assert (await synchronised(store, tmp_path, least_share=least_share)).summary.removed == removed


@pytest.mark.parametrize("other", ["/home/an/wiki", "samples", ""])
async def test_the_documents_of_another_source_are_not_overwritten(
    store: Store, retriever: FakeRetriever, tmp_path: Path, other: str
) -> None:
    (tmp_path / "a.md").write_text("new")
    put(retriever, other, "wiki/a.md")
    with pytest.raises(Conflict, match=r"The document 'wiki/a\.md' is from"):
        await synchronised(store, tmp_path)
    assert not retriever.uploaded
    assert list(retriever.documents) == ["wiki/a.md"]


async def test_nothing_is_removed_for_a_key_that_does_not_see_what_it_has_sent(
    store: Store, retriever: FakeRetriever, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("new")
    put(retriever, "wiki", "wiki/old.md", "wiki/b.md")  # from before the source had groups
    with pytest.raises(PermissionDenied, match="for the groups hr, staff, and the API key has none of them") as caught:
        await synchronised(store, tmp_path, shrinking=True, groups=("hr", "staff"))
    assert caught.value.field == "sources[wiki].groups"
    assert set(retriever.documents) == {"wiki/old.md", "wiki/b.md"}
    put(retriever, "wiki", "wiki/a.md")
    found = await synchronised(store, tmp_path, shrinking=True, groups=("hr", "staff"))
    assert found.summary.removed == 2
