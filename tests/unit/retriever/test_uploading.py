"""Searches report how far an upload is, from its first message to its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from genaifactory.retriever.v1 import retriever_pb2
from genaifactory_common import channels
from genaifactory_common.errors import InvalidArgument
from genaifactory_common.testing import CALLER, act_as
from genaifactory_retriever.uploading import Announced, Reading, Uploads
from tests.unit.retriever.conftest import Client

KEY = ("docs", "acme")


@dataclass
class Clock:
    """Seconds, as a test sets them."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_progress_of_an_upload_spans_its_calls_until_the_last_one_ends() -> None:
    clock = Clock()
    uploads = Uploads(clock)
    assert uploads.reading(KEY) is None
    with uploads.call(KEY, Announced(3, 0, continues=True)) as call:
        assert uploads.reading(KEY) == Reading(0, 3)
        call.done += 2
    clock.now = 1.0
    assert uploads.reading(KEY) == Reading(2, 3)
    with uploads.call(KEY, Announced(3, 2)):
        assert uploads.reading(KEY) == Reading(2, 3)
        assert uploads.reading(("docs", "globex")) is None
        assert uploads.reading(("other", "acme")) is None
    assert uploads.reading(KEY) is None


def test_an_upload_without_its_next_call_ends_after_a_timeout() -> None:
    clock = Clock()
    uploads = Uploads(clock)
    with uploads.call(KEY, Announced(3, 0, continues=True)):
        pass
    clock.now = 5.0
    assert uploads.reading(KEY) == Reading(0, 3)
    clock.now = 5.1
    assert uploads.reading(KEY) is None


def test_two_uploads_are_added_up_and_one_without_a_size_does_not_count() -> None:
    uploads = Uploads()
    with (
        uploads.call(KEY, Announced(3)) as one,
        uploads.call(KEY, Announced(4)),
        uploads.call(KEY, Announced(0)) as none,
    ):
        one.done = 1
        none.done = 9
        assert uploads.reading(KEY) == Reading(1, 7)


async def test_a_search_during_an_upload_finds_stored_documents_and_reports_the_progress(client: Client) -> None:
    act_as()
    opened = retriever_pb2.IngestOpen(knowledge_base="docs", documents_total=2)
    async with channels.Duplex(client.stub.Ingest, timeout_seconds=60) as call:
        await call.send(retriever_pb2.IngestRequest(open=opened))
        await call.accepted()
        assert (await client.search("leave")).reading.documents_total == 2
        await _send(call, "a.md", b"Annual leave is 16 days.")
        async with asyncio.timeout(30):
            assert (await anext(aiter(call))).document_id == "a.md"
        found = await client.search("annual leave")
        assert [passage.document_id for passage in found.passages] == ["a.md"]
        assert (found.reading.documents_done, found.reading.documents_total) == (1, 2)
        act_as(replace(CALLER, tenant="globex"))
        assert not (await client.search("annual leave")).HasField("reading")
        act_as()
        await _send(call, "b.md", b"The canteen opens at noon.")
        await call.done_sending()
        assert [response.document_id async for response in call] == ["b.md"]
    assert not (await client.search("annual leave")).HasField("reading")


async def test_more_documents_before_than_in_the_whole_upload_are_refused(client: Client) -> None:
    act_as()
    opened = retriever_pb2.IngestOpen(knowledge_base="docs", documents_total=2, documents_before=3)
    with pytest.raises(InvalidArgument, match=r"documents_total \(2\)") as caught:
        await client.send([retriever_pb2.IngestRequest(open=opened)])
    assert caught.value.field == "open.documents_before"


async def _send(call: channels.Duplex, document_id: str, data: bytes) -> None:
    header = retriever_pb2.DocumentHeader(document_id=document_id, uri=document_id, size_bytes=len(data))
    await call.send(retriever_pb2.IngestRequest(document=header))
    await call.send(retriever_pb2.IngestRequest(data=data))
